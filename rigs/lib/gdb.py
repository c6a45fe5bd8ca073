"""Carries a debugger's connection into a rig, over its third serial port."""

import os
import pathlib
import re
import socket

from .errors import RigError


class GdbLine:
    """Listens outside; one debugger at a time, as on any serial line.

    The rig opens its connection to the stub when the debugger comes and closes it when the
    debugger goes: a stub stops its guest for as long as a client is connected.
    """

    def __init__(self, address):
        self._path = None
        if found := re.fullmatch(r"tcp:(127\.0\.0\.1):(\d+)", address):
            self._listener = socket.create_server((found[1], int(found[2])))
        elif address.startswith("unix:"):
            self._path = pathlib.Path(address[5:])
            self._listener = socket.socket(socket.AF_UNIX)
            before = os.umask(0o177)
            try:
                self._listener.bind(str(self._path))
            except OSError as error:
                raise RigError(f"cannot listen on {self._path}: {error.strerror}") from error
            finally:
                os.umask(before)
            self._listener.listen(1)
        else:
            raise RigError(f"{address} is neither tcp:127.0.0.1:PORT nor unix:PATH")
        self._client = None
        #: The rig still clears its line after the last debugger.
        self._clearing = False

    def close(self):
        self._listener.close()
        if self._client:
            self._client.close()
        if self._path:
            self._path.unlink(missing_ok=True)

    def watched(self, machine):
        """What to wait for."""
        if self._client:
            return [self._client, machine.debugger.fd]
        return [machine.debugger.fd] if self._clearing else [self._listener, machine.debugger.fd]

    def relay(self, machine, ready):
        """Moves what has come."""
        if self._listener in ready and not self._client:
            self._client, _ = self._listener.accept()
            os.write(machine.conversation.fd, b"connect\n")
        if machine.debugger.fd in ready:
            data = os.read(machine.debugger.fd, 65536)
            if self._client:
                try:
                    self._client.sendall(data)
                except OSError:
                    self._gone(machine)
        if self._client and self._client in ready:
            try:
                data = self._client.recv(2048)
            except OSError:
                data = b""
            if data:
                os.write(machine.debugger.fd, data)
            else:
                self._gone(machine)

    def rig_says(self, word):
        """`disconnected`: the stub has closed. `free`: the line is clear for the next."""
        if word == "disconnected" and self._client:
            self._client.close()
            self._client = None
        elif word == "free":
            self._clearing = False

    def _gone(self, machine):
        self._client.close()
        self._client = None
        self._clearing = True
        os.write(machine.conversation.fd, b"disconnect\n")

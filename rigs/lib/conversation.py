"""What a rig says on its second serial port: output as it is, and marked lines (../init)."""

import re


class Conversation:
    """Tells the parts' output from the rig's own lines, however the bytes are cut."""

    def __init__(self, mark):
        self._prefix = f"\n{mark} ".encode()
        self._line = re.compile(re.escape(self._prefix) + rb"([^\n]*)\n")
        self._held = b""

    def feed(self, data):
        """Yields `bytes` for output and `list[str]` for the words of a line of the rig."""
        self._held += data
        while found := self._line.search(self._held):
            if found.start():
                yield self._held[: found.start()]
            yield found[1].decode(errors="replace").split()
            self._held = self._held[found.end() :]
        # A mark may have come in part.
        begun = self._held.find(self._prefix)
        if begun < 0:
            begun = len(self._held)
            for length in range(min(len(self._prefix) - 1, len(self._held)), 0, -1):
                if self._held.endswith(self._prefix[:length]):
                    begun = len(self._held) - length
                    break
        if begun:
            yield self._held[:begun]
            self._held = self._held[begun:]

    def rest(self):
        """What looked like the beginning of a mark, when nothing more will come."""
        rest, self._held = self._held, b""
        return rest

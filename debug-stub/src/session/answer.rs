//! Answers to requests. The guest is stopped.

use std::fmt::Write as _;

use vcpu_caps::VcpuId;

use crate::filter::{push_escaped, push_hex_bytes};
use crate::guest::{errno, tid};
use crate::host::{Action, Host};
use crate::memory::SCAN_LIMIT;
use crate::monitor;
use crate::qemu;
use crate::request::{PointKind, Request, Run, RunAction, ThreadId};
use crate::x86_64::{RegisterGroups, RegisterId};

use super::{Session, State};

impl<H: Host> Session<H> {
    pub(super) fn answer(&mut self, request: Request, body: &[u8]) {
        match request {
            Request::StopReason => {
                let stop = self.last_stop.clone();
                let reply = self.stop_reply(&stop);
                self.reply(&reply);
            }
            Request::Supported => self.answer_supported(),
            Request::StopAcknowledging => {
                // The reply is the last that the client acknowledges ("QStartNoAckMode").
                self.reply(b"OK");
                self.sender.stop_acknowledging();
            }
            Request::Detach => {
                self.reply(b"OK");
                self.release();
                self.closing = true;
            }
            Request::Kill { reply } => {
                if reply {
                    self.reply(b"OK");
                }
                self.actions.push_back(Action::Kill);
                self.state = State::Ended;
                self.closing = true;
            }
            Request::SelectForAccess(thread) => match self.vcpu_of(thread) {
                Some(vcpu) => {
                    self.guest.current = vcpu;
                    self.relay(format!("Hg{:x}", tid(vcpu)).as_bytes());
                }
                None => self.reply_error(errno::EINVAL),
            },
            Request::SelectForRun(thread) => match self.vcpu_of(thread) {
                Some(_) => {
                    self.run_thread = thread;
                    self.reply(b"OK");
                }
                None => self.reply_error(errno::EINVAL),
            },
            Request::IsAlive(thread) => match thread {
                ThreadId::One(_) if self.vcpu_of(thread).is_some() => self.reply(b"OK"),
                _ => self.reply_error(errno::EINVAL),
            },
            Request::CurrentThread => {
                self.reply(format!("QC{:x}", tid(self.guest.current)).as_bytes());
            }
            Request::ThreadName(thread) => match (thread, self.vcpu_of(thread)) {
                (ThreadId::One(_), Some(vcpu)) => {
                    let name = self.guest.host.vcpu_name(vcpu);
                    let mut reply = Vec::with_capacity(name.len() * 2);
                    push_hex_bytes(&mut reply, name.as_bytes());
                    self.reply(&reply);
                }
                _ => self.reply_error(errno::EINVAL),
            },
            Request::Threads { offset, length } => self.answer_threads(offset, length),
            // "1: the remote server attached to an existing process": so GDB detaches at its
            // end, and does not kill.
            Request::IsAttached => self.reply(b"1"),
            Request::ReadMemory {
                address,
                length,
                binary,
            } => self.answer_read(address, length, binary),
            Request::WriteMemory { address, data } => {
                let done = self.guest.space().and_then(|space| {
                    if space.write(&self.guest.host, address, &data) {
                        Ok(())
                    } else {
                        Err(errno::EFAULT)
                    }
                });
                self.reply_result(done);
            }
            Request::Search {
                address,
                length,
                pattern,
            } => self.answer_search(address, length, &pattern),
            Request::Crc { address, length } => self.answer_crc(address, length),
            Request::WriteRegisters(data) => {
                let done = self.guest.write_all_registers(&data);
                self.reply_result(done);
            }
            Request::ReadRegister(number) => match RegisterId::new(number) {
                Some(_) => self.relay(format!("p{number:x}").as_bytes()),
                None => self.reply_error(errno::EFAULT),
            },
            Request::WriteRegister { number, value } => match RegisterId::new(number) {
                Some(id) if id.size_bytes() == value.len() => {
                    let mut packet = format!("P{number:x}=").into_bytes();
                    push_hex_bytes(&mut packet, &value);
                    self.relay(&packet);
                }
                Some(_) => self.reply_error(errno::EINVAL),
                None => self.reply_error(errno::EFAULT),
            },
            Request::Point {
                insert,
                kind,
                address,
                length,
            } => self.answer_point(insert, kind, address, length),
            Request::Resume(actions) => self.answer_resume(&actions),
            Request::ResumeLegacy { step, address } => self.answer_legacy(step, address),
            Request::Monitor(command) => self.answer_monitor(&command),
            Request::Qemu(request) => {
                let reply = qemu::answer(&mut self.guest, request);
                self.reply(reply.as_bytes());
            }
            Request::Plain => self.relay(body),
            Request::Malformed => self.refuse(&request, body),
            Request::Unknown => {
                tracing::debug!(packet = %body.escape_ascii(), "not supported");
                self.reply(b"");
            }
        }
    }

    fn reply_result(&mut self, result: Result<(), u8>) {
        match result {
            Ok(()) => self.reply(b"OK"),
            Err(error) => self.reply_error(error),
        }
    }

    /// gdbstub's list, with what the filter adds and what it does not offer.
    fn answer_supported(&mut self) {
        // What the client supports changes nothing: gdbstub would look for multiprocess alone.
        let Some(reply) = self.exchange(b"qSupported:swbreak+") else {
            return;
        };
        let mut features = vec![
            format!("PacketSize={:x}", self.packet_limit),
            "QStartNoAckMode+".into(),
            // The `x` packet, from GDB 16 on.
            "binary-upload+".into(),
            // GDB asks for the threads at every stop: this is one exchange, the list takes two,
            // and one more for each name.
            "qXfer:threads:read+".into(),
        ];
        for feature in String::from_utf8_lossy(&reply).split(';') {
            // One process: thread ids are shorter without its number.
            if !feature.starts_with("PacketSize=") && feature != "multiprocess+" {
                features.push(feature.to_owned());
            }
        }
        self.reply(features.join(";").as_bytes());
    }

    /// The thread list as XML ("Thread List Format"). Made anew for each piece: nothing changes
    /// while the guest is stopped.
    fn answer_threads(&mut self, offset: u64, length: u64) {
        let mut document = String::from("<threads>");
        for index in 0..self.guest.host.vcpu_count() {
            let vcpu = VcpuId(index);
            let name = self.guest.host.vcpu_name(vcpu);
            // Writing to a String does not fail.
            let _ = write!(document, "<thread id=\"{:x}\">", tid(vcpu));
            for character in name.chars() {
                match character {
                    '<' => document.push_str("&lt;"),
                    '&' => document.push_str("&amp;"),
                    _ => document.push(character),
                }
            }
            document.push_str("</thread>");
        }
        document.push_str("</threads>");
        let rest = usize::try_from(offset)
            .ok()
            .and_then(|offset| document.as_bytes().get(offset..))
            .unwrap_or_default();
        // Escaping at worst doubles.
        let longest = self.packet_limit.saturating_sub(1) / 2;
        let length = usize::try_from(length).map_or(longest, |length| length.min(longest));
        let (piece, more) = rest.split_at_checked(length).unwrap_or((rest, &[]));
        let mut reply = vec![if more.is_empty() { b'l' } else { b'm' }];
        push_escaped(&mut reply, piece);
        self.reply(&reply);
    }

    /// `m`, `x`: a reply may be shorter than asked for; an error says that nothing is there.
    fn answer_read(&mut self, address: u64, length: u64, binary: bool) {
        // Hexadecimal doubles; escaping at worst does. So the reply fits in a packet.
        let longest = self.packet_limit.saturating_sub(1) / 2;
        let length = usize::try_from(length).map_or(longest, |length| length.min(longest));
        let space = match self.guest.space() {
            Ok(space) => space,
            Err(error) => return self.reply_error(error),
        };
        let mut data = vec![0; length];
        let read = space.read(&self.guest.host, address, &mut data);
        if read == 0 && length != 0 {
            return self.reply_error(errno::EFAULT);
        }
        data.truncate(read);
        let mut reply = Vec::with_capacity(1 + 2 * data.len());
        if binary {
            reply.push(b'b');
            push_escaped(&mut reply, &data);
        } else {
            push_hex_bytes(&mut reply, &data);
        }
        self.reply(&reply);
    }

    fn answer_search(&mut self, address: u64, length: u64, pattern: &[u8]) {
        if length > SCAN_LIMIT {
            return self.reply_error(errno::EFBIG);
        }
        let space = match self.guest.space() {
            Ok(space) => space,
            Err(error) => return self.reply_error(error),
        };
        match space.search(&self.guest.host, address, length, pattern) {
            Ok(Some(found)) => self.reply(format!("1,{found:x}").as_bytes()),
            Ok(None) => self.reply(b"0"),
            Err(()) => self.reply_error(errno::EFAULT),
        }
    }

    fn answer_crc(&mut self, address: u64, length: u64) {
        if length > SCAN_LIMIT {
            return self.reply_error(errno::EFBIG);
        }
        let space = match self.guest.space() {
            Ok(space) => space,
            Err(error) => return self.reply_error(error),
        };
        match space.crc(&self.guest.host, address, length) {
            Some(crc) => self.reply(format!("C{crc:x}").as_bytes()),
            None => self.reply_error(errno::EFAULT),
        }
    }

    fn answer_point(&mut self, insert: bool, kind: PointKind, address: u64, length: u64) {
        let config = &self.guest.config;
        let offered = match kind {
            PointKind::Software => config.software_breakpoints() || config.hardware_breakpoints(),
            PointKind::Hardware => config.hardware_breakpoints(),
            PointKind::Write | PointKind::Access => config.watchpoints(),
            // x86 has none. GDB takes an access watchpoint instead, and compares values itself.
            PointKind::Read => false,
        };
        if !offered {
            return self.reply(b"");
        }
        let operation = if insert { 'Z' } else { 'z' };
        let kind = match kind {
            PointKind::Software => 0,
            PointKind::Hardware => 1,
            PointKind::Write => 2,
            PointKind::Read => 3,
            PointKind::Access => 4,
        };
        self.relay(format!("{operation}{kind},{address:x},{length:x}").as_bytes());
    }

    fn answer_monitor(&mut self, command: &[u8]) {
        let command: Vec<u8> = command
            .chunks_exact(2)
            .filter_map(|pair| {
                let digits = std::str::from_utf8(pair).ok()?;
                u8::from_str_radix(digits, 16).ok()
            })
            .collect();
        let text = monitor::answer(&mut self.guest, &String::from_utf8_lossy(&command));
        self.console(&text);
        self.reply(b"OK");
    }

    /// `c`, `C`, `s`, `S`: as `vCont`, for the thread of `Hc`. A step without one is the selected
    /// thread's.
    fn answer_legacy(&mut self, step: bool, address: Option<u64>) {
        let Some(vcpu) = self.vcpu_of(self.run_thread) else {
            return self.reply_error(errno::EINVAL);
        };
        if let Some(address) = address {
            let moved = self
                .guest
                .registers
                .read(&mut self.guest.host, vcpu, RegisterGroups::EXPEDITED)
                .cloned()
                .map_err(|error| crate::guest::refused(vcpu, &error))
                .and_then(|mut registers| {
                    RegisterId::RIP
                        .write(&mut registers, &self.guest.host, &address.to_le_bytes())
                        .map_err(|_| errno::EINVAL)?;
                    self.guest
                        .registers
                        .write(&mut self.guest.host, vcpu, RegisterGroups::CORE, &registers)
                        .map_err(|error| crate::guest::refused(vcpu, &error))
                });
            if let Err(error) = moved {
                return self.reply_error(error);
            }
        }
        let run = if step { Run::Step } else { Run::Continue };
        let thread = match (step, self.run_thread) {
            (false, ThreadId::All | ThreadId::Any) => ThreadId::All,
            _ => ThreadId::One(u32::from(vcpu.0) + 1),
        };
        self.answer_resume(&[RunAction { run, thread }]);
    }
}

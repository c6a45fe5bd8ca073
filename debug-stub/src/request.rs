//! Which parser a packet is for, and the parser for what gdbstub does not survive.
//!
//! Each packet is parsed once. [`classify`] looks at its beginning. Most packets go to gdbstub
//! ([`Request::Gdbstub`]), unchanged. The session parses the others here:
//!
//! | packets | why not gdbstub |
//! |---|---|
//! | `H`, `c`, `s`, `C`, `S` | gdbstub takes any thread for `Hg`, ends at `Hg-1`, ignores the address of `c`, and does not know `C` |
//! | `vCont` with a default step, `t`, or an action behind the default | gdbstub ends, or applies what "leftmost" excludes |
//! | `m`, `M`, `X` | gdbstub reads without a limit and joins what is on both sides of a hole; it does not compare a length with its data |
//! | `D`, `k`, `vKill` | they end gdbstub's state machine |
//! | `!`, `R`, `vRun`, `vAttach` | detaching and attaching are the session's |
//! | `?` | gdbstub reports the first thread and no reason |
//! | `qSupported`, `QStartNoAckMode` | the filter owns what they are about |
//! | `p`, `qXfer:features` | gdbstub has no unavailable registers, and one description for all time |
//! | `QEnableErrorStrings`, `QListThreadsInStopReply`, `qHostInfo`, `qProcessInfo` | they say that the client is LLDB |
//! | `x`, `qC`, `qSearch`, `qCRC`, `qXfer:threads`, `qMemoryRegionInfo`, `qqemu`, `Qqemu` | gdbstub does not know them |
//! | `Z3`, `Z4` | no host provides read watchpoints, and one without watchpoints watches writes all the same; gdbstub cannot refuse one kind |
//! | `Z0`, `Z1` with conditions or commands | gdbstub drops them |
//!
//! A packet that gdbstub refuses ends its state machine. The session then sends an error and builds
//! a new machine (`stub`).

mod points;

use crate::agent::ProgramError;
use crate::breakpoints::{HitProgram, Point};
use crate::filter::hex_digit;

/// Which thread a packet means (GDB manual, "thread-id syntax").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ThreadId {
    /// -1.
    All,
    /// 0.
    Any,
    /// A thread's number, counted from 1.
    One(usize),
}

/// `qqemu.*` and `Qqemu.*`, QEMU's maintenance packets (QEMU, "Advanced debugging options").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QemuRequest {
    Supported,
    StepBits,
    Step,
    SetStep(u64),
    PhysicalMemory,
    SetPhysicalMemory(bool),
}

/// What a client has announced with `qSupported` ("General Query Packets"). A client that announces nothing
/// must not be sent what it may not know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ClientFeatures {
    /// The stop reason `swbreak`.
    pub(crate) swbreak: bool,
    /// The stop reason `hwbreak`.
    pub(crate) hwbreak: bool,
    /// Errors with a text: `E.text`.
    pub(crate) error_message: bool,
    /// It is LLDB.
    pub(crate) lldb: bool,
    /// Errors with a number and a text, as LLDB asks for.
    pub(crate) error_strings: bool,
}

/// LLDB's own packets (LLDB, "GDB Remote Protocol Extensions").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LldbRequest {
    /// `QEnableErrorStrings`
    ErrorStrings,
    /// `QListThreadsInStopReply`
    ListThreads,
    /// `qHostInfo`
    HostInfo,
    /// `qProcessInfo`
    ProcessInfo,
}

impl ClientFeatures {
    /// Parses the features behind `qSupported:`. Unknown ones are ignored, as the protocol wants.
    fn parse(features: &[u8]) -> Self {
        let mut all = Self::default();
        for feature in features.split(|byte| *byte == b';') {
            match feature {
                b"swbreak+" => all.swbreak = true,
                b"hwbreak+" => all.hwbreak = true,
                b"error-message+" => all.error_message = true,
                _ => {}
            }
        }
        all
    }
}

/// A packet, given to its parser.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request<'a> {
    /// gdbstub parses it.
    Gdbstub,
    /// `Z4` or `z4`; gdbstub parses it, if the host has watchpoints.
    AccessWatchpoint,
    /// `?`
    StopReason,
    /// `qSupported`, with what the client supports.
    Supported(ClientFeatures),
    /// `QStartNoAckMode`
    StopAcknowledging,
    /// `!`
    Extend,
    /// `vAttach`
    Attach,
    /// `R`, which has no reply, and `vRun`, whose reply is a stop.
    Run {
        reply: bool,
    },
    /// `D`
    Detach,
    /// `k`, which has no reply, and `vKill`, which has one.
    Kill {
        reply: bool,
    },
    /// `Hg`
    SelectForAccess(ThreadId),
    /// `Hc`
    SelectForRun(ThreadId),
    /// `qC`
    CurrentThread,
    /// `qXfer:threads:read`
    Threads {
        offset: u64,
        length: u64,
    },
    /// `qXfer:features:read`
    Features {
        annex: &'a [u8],
        offset: u64,
        length: u64,
    },
    /// `p`
    ReadRegister(u64),
    /// `m` and, if `binary`, `x`
    ReadMemory {
        address: u64,
        length: u64,
        binary: bool,
    },
    /// `M`, `X`
    WriteMemory {
        address: u64,
        data: Vec<u8>,
    },
    /// `qSearch:memory`
    Search {
        address: u64,
        length: u64,
        pattern: Vec<u8>,
    },
    /// `qCRC`
    Crc {
        address: u64,
        length: u64,
    },
    /// LLDB's `qMemoryRegionInfo`
    MemoryRegion(u64),
    /// `Z0` and `Z1` with conditions or commands.
    Insert {
        point: Point,
        program: Result<HitProgram, ProgramError>,
    },
    /// `vCont`, with its actions as they are: [`actions`] parses them.
    Resume(&'a [u8]),
    /// `c`, `C`, `s`, `S`, with the address to go on at.
    ResumeLegacy {
        step: bool,
        address: Option<u64>,
    },
    Qemu(QemuRequest),
    Lldb(LldbRequest),
    /// A packet that makes no sense.
    Malformed,
    /// A packet that does not fit gdbstub's buffer.
    TooLong,
    /// Not supported: the reply is empty ("Packets").
    Unsupported,
}

/// Decides which parser a packet is for, and parses it if that is the session's own. gdbstub takes
/// packets of up to `longest` bytes.
pub(crate) fn classify(body: &[u8], longest: usize) -> Request<'_> {
    match own(body) {
        Some(Request::Gdbstub) if body.len() > longest => match body.strip_prefix(b"vCont;") {
            // An action for each vCPU may not fit.
            Some(actions) => Request::Resume(actions),
            None => Request::TooLong,
        },
        request => request.unwrap_or(Request::Malformed),
    }
}

/// `None` if the packet makes no sense.
fn own(body: &[u8]) -> Option<Request<'_>> {
    let Some((&first, rest)) = body.split_first() else {
        return Some(Request::Unsupported);
    };
    Some(match first {
        b'?' if rest.is_empty() => Request::StopReason,
        b'D' => match rest {
            [] | [b';', ..] => Request::Detach,
            _ => return None,
        },
        b'!' if rest.is_empty() => Request::Extend,
        b'R' => Request::Run { reply: false },
        b'k' if rest.is_empty() => Request::Kill { reply: false },
        b'k' => Request::Unsupported,
        b'H' => select(rest)?,
        b'm' | b'x' => {
            let (address, length) = address_and_length(rest)?;
            Request::ReadMemory {
                address,
                length,
                binary: first == b'x',
            }
        }
        b'M' => write_memory(rest, bytes_from_hex)?,
        b'X' => write_memory(rest, unescape)?,
        b'c' | b's' => resume_at(first == b's', rest)?,
        b'C' | b'S' => {
            // `C sig` or `C sig;addr`.
            let (signal, address) = split_once(rest, b';').unwrap_or((rest, &[]));
            number(signal)?;
            resume_at(first == b'S', address)?
        }
        b'p' => Request::ReadRegister(number(rest)?),
        // gdbstub takes an odd digit for a byte, and `x` for a zero.
        b'G' if !is_hex_bytes(rest) => return None,
        b'P' if !split_once(rest, b'=').is_some_and(|(_, value)| is_hex_bytes(value)) => {
            return None;
        }
        b'Z' | b'z' => match rest {
            // gdbstub drops conditions and commands.
            _ if first == b'Z' && rest.contains(&b';') => points::insert(rest)?,
            [b'3', b',', ..] => Request::Unsupported,
            [b'4', b',', ..] => Request::AccessWatchpoint,
            [b'0' | b'1' | b'2', b',', ..] => Request::Gdbstub,
            _ => return None,
        },
        b'v' => verbose(body)?,
        b'q' | b'Q' => query(body)?,
        _ => Request::Gdbstub,
    })
}

fn resume_at(step: bool, address: &[u8]) -> Option<Request<'_>> {
    let address = match address {
        [] => None,
        digits => Some(number(digits)?),
    };
    Some(Request::ResumeLegacy { step, address })
}

fn verbose(body: &[u8]) -> Option<Request<'_>> {
    if let Some(actions) = body.strip_prefix(b"vCont") {
        return match actions {
            b"?" => Some(Request::Gdbstub),
            [b';', actions @ ..] if is_regular(actions) => Some(Request::Gdbstub),
            [b';', actions @ ..] => Some(Request::Resume(actions)),
            _ => None,
        };
    }
    if body.starts_with(b"vRun") {
        return Some(Request::Run { reply: true });
    }
    if let Some(process) = body.strip_prefix(b"vAttach;") {
        return number(process).map(|_| Request::Attach);
    }
    Some(match body.strip_prefix(b"vKill") {
        Some([] | [b';', ..]) => Request::Kill { reply: true },
        Some(_) => Request::Unsupported,
        None => Request::Gdbstub,
    })
}

fn query(body: &[u8]) -> Option<Request<'_>> {
    let after = |prefix: &[u8]| body.strip_prefix(prefix);
    Some(match body {
        b"QStartNoAckMode" => Request::StopAcknowledging,
        b"qC" => Request::CurrentThread,
        b"QEnableErrorStrings" => Request::Lldb(LldbRequest::ErrorStrings),
        b"QListThreadsInStopReply" => Request::Lldb(LldbRequest::ListThreads),
        b"qHostInfo" => Request::Lldb(LldbRequest::HostInfo),
        b"qProcessInfo" => Request::Lldb(LldbRequest::ProcessInfo),
        // QEMU takes either letter for each of these, and clients depend on it: GEF and pwndbg ask
        // `Qqemu.sstepbits` to find out whether they talk to QEMU.
        [b'q' | b'Q', b'q', b'e', b'm', b'u', b'.', rest @ ..] => return qemu(rest),
        _ => {
            if let Some([] | [b':', ..]) = after(b"qSupported") {
                let features = after(b"qSupported:").unwrap_or_default();
                Request::Supported(ClientFeatures::parse(features))
            } else if let Some(rest) = after(b"qRcmd,") {
                if !is_hex_bytes(rest) {
                    return None;
                }
                Request::Gdbstub
            } else if let Some(rest) = after(b"qXfer:threads:read::") {
                let (offset, length) = address_and_length(rest)?;
                Request::Threads { offset, length }
            } else if let Some(rest) = after(b"qXfer:features:read:") {
                let (annex, rest) = split_once(rest, b':')?;
                let (offset, length) = address_and_length(rest)?;
                Request::Features {
                    annex,
                    offset,
                    length,
                }
            } else if let Some(rest) = after(b"qSearch:memory:") {
                search(rest)?
            } else if let Some(rest) = after(b"qCRC:") {
                let (address, length) = address_and_length(rest)?;
                Request::Crc { address, length }
            } else if let Some(address) = after(b"qMemoryRegionInfo:") {
                Request::MemoryRegion(number(address)?)
            } else {
                Request::Gdbstub
            }
        }
    })
}

/// What follows `qqemu.` or `Qqemu.`.
fn qemu(rest: &[u8]) -> Option<Request<'_>> {
    Some(match rest {
        b"Supported" => Request::Qemu(QemuRequest::Supported),
        b"sstepbits" => Request::Qemu(QemuRequest::StepBits),
        b"sstep" => Request::Qemu(QemuRequest::Step),
        b"PhyMemMode" => Request::Qemu(QemuRequest::PhysicalMemory),
        _ => {
            if let Some(value) = rest.strip_prefix(b"sstep=") {
                Request::Qemu(QemuRequest::SetStep(qemu_number(value)?))
            } else if let Some(value) = rest.strip_prefix(b"PhyMemMode:") {
                Request::Qemu(QemuRequest::SetPhysicalMemory(qemu_number(value)? != 0))
            } else {
                Request::Unsupported
            }
        }
    })
}

/// Returns `true` if gdbstub carries out these actions of a `vCont` as the manual says: each names
/// a thread, except that the last may be a continue for all others.
fn is_regular(actions: &[u8]) -> bool {
    let mut rest = actions;
    loop {
        let (action, tail) = match split_once(rest, b';') {
            Some((action, tail)) => (action, Some(tail)),
            None => (rest, None),
        };
        let regular = match (action, split_once(action, b':')) {
            // To stop a thread is for non-stop mode.
            ([b't', ..], _) => false,
            (_, Some((_, thread))) => matches!(thread, [b'1'..=b'9' | b'a'..=b'f', ..]),
            ([b'c' | b'C', ..], None) => tail.is_none(),
            _ => false,
        };
        match tail {
            Some(tail) if regular => rest = tail,
            _ => return regular,
        }
    }
}

/// What an action of a `vCont` does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Run {
    Continue,
    Step,
    /// `r start,end`: step while PC is in the range.
    Range(u64, u64),
}

/// Parses the actions of a `vCont` that is not for gdbstub, from the left. An item is `None` if it
/// makes no sense. Signals are ignored: a virtual machine takes none.
pub(crate) fn actions(text: &[u8]) -> impl Iterator<Item = Option<(Run, ThreadId)>> {
    text.split(|byte| *byte == b';').map(|text| {
        let (action, thread) = match split_once(text, b':') {
            Some((action, thread)) => (action, thread_id(thread)?),
            None => (text, ThreadId::All),
        };
        let run = match action.split_first()? {
            (b'c', []) => Run::Continue,
            (b's', []) => Run::Step,
            (b'C', signal) => number(signal).map(|_| Run::Continue)?,
            (b'S', signal) => number(signal).map(|_| Run::Step)?,
            (b'r', range) => {
                let (start, end) = address_and_length(range)?;
                Run::Range(start, end)
            }
            // `t` is for non-stop mode, which is not offered.
            _ => return None,
        };
        Some((run, thread))
    })
}

fn select(rest: &[u8]) -> Option<Request<'_>> {
    let (&operation, thread) = rest.split_first()?;
    let thread = thread_id(thread)?;
    match operation {
        b'g' => Some(Request::SelectForAccess(thread)),
        b'c' => Some(Request::SelectForRun(thread)),
        _ => None,
    }
}

/// `tid`, or `ppid.tid`, or `ppid`. There is one process, which may have any number.
fn thread_id(text: &[u8]) -> Option<ThreadId> {
    let text = match text.strip_prefix(b"p") {
        Some(text) => match split_once(text, b'.') {
            Some((process, thread)) => {
                one_id(process)?;
                thread
            }
            None => {
                one_id(text)?;
                b"-1"
            }
        },
        None => text,
    };
    one_id(text)
}

fn one_id(text: &[u8]) -> Option<ThreadId> {
    if text == b"-1" {
        return Some(ThreadId::All);
    }
    match number(text)? {
        0 => Some(ThreadId::Any),
        // A number too large for any thread is still a number.
        id => Some(ThreadId::One(usize::try_from(id).unwrap_or(usize::MAX))),
    }
}

fn write_memory(rest: &[u8], decode: fn(&[u8]) -> Option<Vec<u8>>) -> Option<Request<'_>> {
    let (range, data) = split_once(rest, b':')?;
    let (address, length) = address_and_length(range)?;
    let data = decode(data)?;
    (u64::try_from(data.len()).ok()? == length).then_some(Request::WriteMemory { address, data })
}

/// `address;length;pattern`, the pattern in escaped binary.
fn search(rest: &[u8]) -> Option<Request<'_>> {
    let (address, rest) = split_once(rest, b';')?;
    let (length, pattern) = split_once(rest, b';')?;
    let pattern = unescape(pattern)?;
    (!pattern.is_empty()).then_some(())?;
    Some(Request::Search {
        address: number(address)?,
        length: number(length)?,
        pattern,
    })
}

fn address_and_length(text: &[u8]) -> Option<(u64, u64)> {
    let (address, length) = split_once(text, b',')?;
    Some((number(address)?, number(length)?))
}

fn split_once(text: &[u8], separator: u8) -> Option<(&[u8], &[u8])> {
    let at = text.iter().position(|byte| *byte == separator)?;
    let (before, after) = text.split_at_checked(at)?;
    Some((before, after.get(1..)?))
}

/// A hexadecimal number of up to 64 bits.
fn number(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |value, digit| {
        let digit = hex_digit(*digit)?;
        (value >> 60 == 0).then_some((value << 4) | u64::from(digit))
    })
}

/// A hexadecimal number as QEMU takes it: `0x` may stand before it.
fn qemu_number(text: &[u8]) -> Option<u64> {
    number(
        text.strip_prefix(b"0x")
            .or_else(|| text.strip_prefix(b"0X"))
            .unwrap_or(text),
    )
}

/// Returns `true` if these are pairs of hexadecimal digits.
fn is_hex_bytes(text: &[u8]) -> bool {
    text.len().is_multiple_of(2) && text.iter().all(u8::is_ascii_hexdigit)
}

/// Bytes from pairs of hexadecimal digits.
fn bytes_from_hex(text: &[u8]) -> Option<Vec<u8>> {
    text.chunks(2)
        .map(|pair| match pair {
            [high, low] => Some((hex_digit(*high)? << 4) | hex_digit(*low)?),
            _ => None,
        })
        .collect()
}

/// Bytes from escaped binary ("Binary Data").
fn unescape(text: &[u8]) -> Option<Vec<u8>> {
    let mut data = Vec::with_capacity(text.len());
    let mut bytes = text.iter();
    while let Some(&byte) = bytes.next() {
        data.push(if byte == b'}' {
            bytes.next()? ^ 0x20
        } else {
            byte
        });
    }
    Some(data)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(body: &[u8]) -> Request<'_> {
        classify(body, 2000)
    }

    #[test]
    fn what_gdbstub_survives_is_gdbstubs() {
        for body in [
            b"g".as_slice(),
            b"G00ff",
            b"P10=00ff",
            b"T1",
            b"Z0,1000,1",
            b"z2,1000,8",
            b"vCont?",
            b"vCont;c",
            b"vCont;C05",
            b"vCont;c:1",
            b"vCont;s:1",
            b"vCont;s:1;c",
            b"vCont;r1000,1010:1f;s:2;c",
            b"qfThreadInfo",
            b"qAttached",
            b"qRcmd,68656c70",
            b"qThreadExtraInfo,1",
            b"vMustReplyEmpty",
        ] {
            assert_eq!(parse(body), Request::Gdbstub, "{}", body.escape_ascii());
        }
    }

    #[test]
    fn registers_and_descriptions_are_read_by_the_session() {
        assert_eq!(parse(b"p10"), Request::ReadRegister(0x10));
        assert_eq!(
            parse(b"qXfer:features:read:target.xml:20,ffb"),
            Request::Features {
                annex: b"target.xml",
                offset: 0x20,
                length: 0xffb,
            }
        );
        for body in [
            b"p".as_slice(),
            b"px",
            b"p-1",
            b"p11111111111111111",
            b"qXfer:features:read:target.xml",
            b"qXfer:features:read:target.xml:0",
            b"qXfer:features:read:target.xml:,1",
        ] {
            assert_eq!(parse(body), Request::Malformed, "{}", body.escape_ascii());
        }
    }

    #[test]
    fn a_vcont_that_gdbstub_would_refuse_or_misread_is_ours() {
        for body in [
            b"vCont;s".as_slice(),
            b"vCont;S05",
            b"vCont;r1,2",
            b"vCont;s:-1",
            b"vCont;s:0",
            b"vCont;s:p1.-1",
            b"vCont;s:1;c;s:2",
            b"vCont;c;s:1",
            b"vCont;t",
            b"vCont;t:1",
            b"vCont;",
            b"vCont;s:1;;c",
        ] {
            assert!(
                matches!(parse(body), Request::Resume(_)),
                "{}",
                body.escape_ascii()
            );
        }
    }

    #[test]
    fn a_packet_that_does_not_fit_gdbstubs_buffer_is_too_long_for_it() {
        assert_eq!(classify(b"qRcmd,68656c70", 13), Request::TooLong);
        assert_eq!(classify(b"qRcmd,68656c70", 14), Request::Gdbstub);
    }

    #[test]
    fn packets_that_make_no_sense_are_refused() {
        for malformed in [
            b"vCont".as_slice(),
            b"vCont:",
            b"Hg",
            b"Hx1",
            b"H",
            b"Gabc",
            b"Gxx",
            b"m",
            b"m1",
            b"m1,",
            b"m,1",
            b"m10000000000000000,1",
            b"M0,2:00",
            b"M0,1:0",
            b"M0,1:xx",
            b"X0,1:}",
            b"X0,5:ab",
            b"P1",
            b"P1=0",
            b"P1=xx",
            b"Z5,1,1",
            b"Z0,1,1;X1,",
            b"qRcmd,6",
            b"qCRC:1",
            b"qMemoryRegionInfo:",
            b"qMemoryRegionInfo:10000000000000000",
            b"qSearch:memory:0;10;",
            b"Qqemu.sstep=",
            b"qqemu.sstep=",
            b"Dx",
            b"cz",
            b"C",
        ] {
            assert_eq!(
                parse(malformed),
                Request::Malformed,
                "{}",
                malformed.escape_ascii()
            );
        }
    }

    #[test]
    fn actions_are_parsed_from_the_left() {
        let all: Vec<_> = actions(b"S05;r10,20:1;C;t:1").collect();
        assert_eq!(
            all,
            [
                Some((Run::Step, ThreadId::All)),
                Some((Run::Range(0x10, 0x20), ThreadId::One(1))),
                None,
                None,
            ]
        );
    }

    #[test]
    fn thread_ids_are_taken_with_and_without_a_process() {
        assert_eq!(thread_id(b"p1.2"), Some(ThreadId::One(2)));
        assert_eq!(thread_id(b"p1.-1"), Some(ThreadId::All));
        assert_eq!(thread_id(b"p1"), Some(ThreadId::All));
        assert_eq!(thread_id(b"p-1.-1"), Some(ThreadId::All));
        assert_eq!(thread_id(b"0"), Some(ThreadId::Any));
        assert_eq!(thread_id(b"1f"), Some(ThreadId::One(0x1f)));
        assert_eq!(thread_id(b"p."), None);
        assert_eq!(thread_id(b"-2"), None);
    }

    #[test]
    fn qemus_numbers_are_hexadecimal_with_or_without_a_prefix() {
        for text in [b"Qqemu.sstep=0x1".as_slice(), b"Qqemu.sstep=1"] {
            assert_eq!(parse(text), Request::Qemu(QemuRequest::SetStep(1)));
        }
        assert_eq!(
            parse(b"Qqemu.PhyMemMode:1"),
            Request::Qemu(QemuRequest::SetPhysicalMemory(true))
        );
    }

    #[test]
    fn binary_writes_are_unescaped() {
        assert_eq!(
            parse(b"X10,3:a}\x03}\x5d"),
            Request::WriteMemory {
                address: 0x10,
                data: vec![b'a', b'#', b'}'],
            }
        );
    }

    proptest! {
        #[test]
        fn no_packet_panics(body in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = parse(&body);
        }

        #[test]
        fn no_packet_that_looks_right_panics(
            head in "(m|M|X|x|p|P|G|Z0,|z1,|vCont;|vKill|Hg|Hc|T|qRcmd,|qXfer:features:read:|qSearch:memory:|qCRC:|qThreadExtraInfo,|Qqemu.sstep=|c|s|C|S|D)",
            tail in "[0-9a-fp.,:;=rcs-]{0,40}",
        ) {
            let body = format!("{head}{tail}");
            if let Request::Resume(text) = parse(body.as_bytes()) {
                let _ = actions(text).count();
            }
        }
    }
}

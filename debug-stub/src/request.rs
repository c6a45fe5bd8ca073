//! What a packet asks for, checked.
//!
//! gdbstub ends the session at a packet that it cannot parse, and at some that it can
//! (`Hg-1`, `vCont;t`, a step as the default action, a short `G`). So no packet of the client's
//! reaches it: each is parsed here, in full, and what gdbstub serves is handed to it in a
//! canonical spelling. Everything else is answered by the session itself.

use std::ops::Range;

use crate::filter::hex_digit;

/// Which thread a packet means (GDB manual, "thread-id syntax").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ThreadId {
    /// -1.
    All,
    /// 0.
    Any,
    /// A thread's number, counted from 1.
    One(u32),
}

/// What one action of a resume packet does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Run {
    Continue,
    Step,
    /// `r start,end`: step while PC is in the range.
    Range(Range<u64>),
}

/// One action of a resume packet. Signals that the client wants delivered are ignored: a
/// virtual machine has none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RunAction {
    pub(crate) run: Run,
    pub(crate) thread: ThreadId,
}

/// Type of a breakpoint, as in `Z type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum PointKind {
    Software,
    Hardware,
    Write,
    Read,
    Access,
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

/// A packet, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// `?`
    StopReason,
    /// `qSupported`
    Supported,
    /// `QStartNoAckMode`
    StopAcknowledging,
    /// `D`
    Detach,
    /// `k`, which has no reply, and `vKill`, which has.
    Kill {
        reply: bool,
    },
    /// `Hg`
    SelectForAccess(ThreadId),
    /// `Hc`
    SelectForRun(ThreadId),
    /// `T`
    IsAlive(ThreadId),
    /// `qC`
    CurrentThread,
    /// `qThreadExtraInfo`
    ThreadName(ThreadId),
    /// `qXfer:threads:read`
    Threads {
        offset: u64,
        length: u64,
    },
    /// `qAttached`
    IsAttached,
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
    /// `G`
    WriteRegisters(Vec<u8>),
    /// `p`
    ReadRegister(usize),
    /// `P`
    WriteRegister {
        number: usize,
        value: Vec<u8>,
    },
    /// `Z`, `z`
    Point {
        insert: bool,
        kind: PointKind,
        address: u64,
        length: u64,
    },
    /// `vCont`
    Resume(Vec<RunAction>),
    /// `c`, `C`, `s`, `S`, with the address to go on at.
    ResumeLegacy {
        step: bool,
        address: Option<u64>,
    },
    /// `qRcmd`, with the command still in hexadecimal.
    Monitor(Vec<u8>),
    Qemu(QemuRequest),
    /// Served by gdbstub in this very spelling: `g`, `vCont?`, the thread list, target.xml.
    Plain,
    /// Known, and wrong.
    Malformed,
    /// Not known: an empty reply says so ("Packets", "unsupported").
    Unknown,
}

/// Understands a packet.
pub(crate) fn parse(body: &[u8]) -> Request {
    let Some((&first, rest)) = body.split_first() else {
        return Request::Unknown;
    };
    match first {
        b'?' if rest.is_empty() => Request::StopReason,
        b'g' if rest.is_empty() => Request::Plain,
        b'D' => match rest {
            [] | [b';', ..] => Request::Detach,
            _ => Request::Malformed,
        },
        b'k' if rest.is_empty() => Request::Kill { reply: false },
        b'H' => select(rest).unwrap_or(Request::Malformed),
        b'T' => thread_id(rest).map_or(Request::Malformed, Request::IsAlive),
        b'm' => read_memory(rest, false).unwrap_or(Request::Malformed),
        b'x' => read_memory(rest, true).unwrap_or(Request::Malformed),
        b'M' => write_memory(rest, bytes_from_hex).unwrap_or(Request::Malformed),
        b'X' => write_memory(rest, unescape).unwrap_or(Request::Malformed),
        b'G' => bytes_from_hex(rest).map_or(Request::Malformed, Request::WriteRegisters),
        b'p' => register_number(rest).map_or(Request::Malformed, Request::ReadRegister),
        b'P' => write_register(rest).unwrap_or(Request::Malformed),
        b'Z' => point(rest, true).unwrap_or(Request::Malformed),
        b'z' => point(rest, false).unwrap_or(Request::Malformed),
        b'c' | b's' => resume_at(first == b's', Some(rest)),
        b'C' | b'S' => {
            // `C sig` or `C sig;addr`.
            let (signal, address) = split_once(rest, b';')
                .map_or((rest, None), |(signal, address)| (signal, Some(address)));
            match number(signal) {
                Some(_) => resume_at(first == b'S', address),
                None => Request::Malformed,
            }
        }
        b'v' => parse_v(body),
        b'q' | b'Q' => parse_query(body),
        _ => Request::Unknown,
    }
}

fn resume_at(step: bool, address: Option<&[u8]>) -> Request {
    match address {
        None | Some([]) => Request::ResumeLegacy {
            step,
            address: None,
        },
        Some(digits) => match number(digits) {
            Some(address) => Request::ResumeLegacy {
                step,
                address: Some(address),
            },
            None => Request::Malformed,
        },
    }
}

fn parse_v(body: &[u8]) -> Request {
    if body == b"vCont?" {
        Request::Plain
    } else if let Some(actions) = body.strip_prefix(b"vCont") {
        resume(actions).map_or(Request::Malformed, Request::Resume)
    } else if let Some(process) = body.strip_prefix(b"vKill") {
        match process {
            [] | [b';', ..] => Request::Kill { reply: true },
            _ => Request::Unknown,
        }
    } else {
        Request::Unknown
    }
}

fn parse_query(body: &[u8]) -> Request {
    let after = |prefix: &[u8]| body.strip_prefix(prefix);
    match body {
        b"QStartNoAckMode" => Request::StopAcknowledging,
        b"qC" => Request::CurrentThread,
        b"qfThreadInfo" | b"qsThreadInfo" => Request::Plain,
        b"qqemu.Supported" => Request::Qemu(QemuRequest::Supported),
        b"qqemu.sstepbits" => Request::Qemu(QemuRequest::StepBits),
        b"qqemu.sstep" => Request::Qemu(QemuRequest::Step),
        b"qqemu.PhyMemMode" => Request::Qemu(QemuRequest::PhysicalMemory),
        _ => {
            if after(b"qSupported").is_some_and(|rest| matches!(rest, [] | [b':', ..])) {
                Request::Supported
            } else if after(b"qAttached").is_some_and(|rest| matches!(rest, [] | [b':', ..])) {
                Request::IsAttached
            } else if let Some(rest) = after(b"qThreadExtraInfo,") {
                thread_id(rest).map_or(Request::Malformed, Request::ThreadName)
            } else if let Some(rest) = after(b"qRcmd,") {
                match bytes_from_hex(rest) {
                    Some(_) => Request::Monitor(rest.to_vec()),
                    None => Request::Malformed,
                }
            } else if let Some(rest) = after(b"qXfer:features:read:") {
                transfer(rest).unwrap_or(Request::Malformed)
            } else if let Some(rest) = after(b"qXfer:threads:read::") {
                match address_and_length(rest) {
                    Some((offset, length)) => Request::Threads { offset, length },
                    None => Request::Malformed,
                }
            } else if let Some(rest) = after(b"qSearch:memory:") {
                search(rest).unwrap_or(Request::Malformed)
            } else if let Some(rest) = after(b"qCRC:") {
                match address_and_length(rest) {
                    Some((address, length)) => Request::Crc { address, length },
                    None => Request::Malformed,
                }
            } else if let Some(rest) = after(b"Qqemu.sstep=") {
                qemu_number(rest).map_or(Request::Malformed, |bits| {
                    Request::Qemu(QemuRequest::SetStep(bits))
                })
            } else if let Some(rest) = after(b"Qqemu.PhyMemMode:") {
                qemu_number(rest).map_or(Request::Malformed, |mode| {
                    Request::Qemu(QemuRequest::SetPhysicalMemory(mode != 0))
                })
            } else {
                Request::Unknown
            }
        }
    }
}

fn select(rest: &[u8]) -> Option<Request> {
    let (&operation, thread) = rest.split_first()?;
    let thread = thread_id(thread)?;
    match operation {
        b'g' => Some(Request::SelectForAccess(thread)),
        b'c' => Some(Request::SelectForRun(thread)),
        _ => None,
    }
}

/// `tid`, or `ppid.tid`, or `ppid`; the one process there is may have any number.
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
        id => Some(ThreadId::One(u32::try_from(id).unwrap_or(u32::MAX))),
    }
}

fn read_memory(rest: &[u8], binary: bool) -> Option<Request> {
    let (address, length) = address_and_length(rest)?;
    Some(Request::ReadMemory {
        address,
        length,
        binary,
    })
}

fn write_memory(rest: &[u8], decode: fn(&[u8]) -> Option<Vec<u8>>) -> Option<Request> {
    let (range, data) = split_once(rest, b':')?;
    let (address, length) = address_and_length(range)?;
    let data = decode(data)?;
    (u64::try_from(data.len()).ok()? == length).then_some(Request::WriteMemory { address, data })
}

fn write_register(rest: &[u8]) -> Option<Request> {
    let (register, value) = split_once(rest, b'=')?;
    Some(Request::WriteRegister {
        number: register_number(register)?,
        value: bytes_from_hex(value)?,
    })
}

fn register_number(text: &[u8]) -> Option<usize> {
    usize::try_from(number(text)?).ok()
}

fn point(rest: &[u8], insert: bool) -> Option<Request> {
    let (kind, rest) = split_once(rest, b',')?;
    // Conditions and commands (`;X…`) are for stubs that advertise them; to set a breakpoint
    // without its condition would be a lie.
    let (address, length) = address_and_length(rest)?;
    let kind = match kind {
        b"0" => PointKind::Software,
        b"1" => PointKind::Hardware,
        b"2" => PointKind::Write,
        b"3" => PointKind::Read,
        b"4" => PointKind::Access,
        _ => return None,
    };
    Some(Request::Point {
        insert,
        kind,
        address,
        length,
    })
}

fn resume(rest: &[u8]) -> Option<Vec<RunAction>> {
    let rest = rest.strip_prefix(b";")?;
    rest.split(|byte| *byte == b';').map(run_action).collect()
}

fn run_action(text: &[u8]) -> Option<RunAction> {
    let (action, thread) = match split_once(text, b':') {
        // "0, any" means nothing here; clients that send it mean all.
        Some((action, thread)) => match thread_id(thread)? {
            ThreadId::Any => (action, ThreadId::All),
            thread => (action, thread),
        },
        None => (text, ThreadId::All),
    };
    let run = match action.split_first()? {
        (b'c', []) => Run::Continue,
        (b's', []) => Run::Step,
        (b'C', signal) => number(signal).map(|_| Run::Continue)?,
        (b'S', signal) => number(signal).map(|_| Run::Step)?,
        (b'r', range) => {
            let (start, end) = address_and_length(range)?;
            // "an empty range means a single step" ("vCont", action r).
            if start < end {
                Run::Range(start..end)
            } else {
                Run::Step
            }
        }
        // `t` is for non-stop mode, which is not offered.
        _ => return None,
    };
    Some(RunAction { run, thread })
}

/// `annex:offset,length`, to be passed on as it is.
fn transfer(rest: &[u8]) -> Option<Request> {
    let (_annex, range) = split_once(rest, b':')?;
    address_and_length(range)?;
    Some(Request::Plain)
}

/// `address;length;pattern`, the pattern in escaped binary.
fn search(rest: &[u8]) -> Option<Request> {
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

    #[test]
    fn packets_that_end_a_gdbstub_session_are_understood_or_refused() {
        assert_eq!(
            parse(b"Hg-1"),
            Request::SelectForAccess(ThreadId::All),
            "Hg-1"
        );
        for malformed in [
            b"vCont;t".as_slice(),
            b"vCont;t:1",
            b"vCont",
            b"vCont;",
            b"vCont;s;;c",
            b"vCont;r10",
            b"vCont;Cxyz",
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
            b"X0,1:}",
            b"X0,5:ab",
            b"p",
            b"pzz",
            b"P1",
            b"P=00",
            b"P1=0",
            b"Z0,1",
            b"Z5,1,1",
            b"Z0,1,1;X1,22",
            b"qRcmd,6",
            b"qXfer:features:read:target.xml",
            b"qThreadExtraInfo,",
            b"T",
            b"qCRC:1",
            b"qSearch:memory:0;10;",
            b"Qqemu.sstep=",
            b"Dx",
            b"cz",
            b"C",
        ] {
            assert_eq!(
                parse(malformed),
                Request::Malformed,
                "{}",
                String::from_utf8_lossy(malformed)
            );
        }
    }

    #[test]
    fn a_range_that_is_empty_or_backwards_is_one_step() {
        let one = |text: &[u8]| match parse(text) {
            Request::Resume(actions) => actions.into_iter().next().unwrap().run,
            other => panic!("{other:?}"),
        };
        assert_eq!(one(b"vCont;r10,10:1"), Run::Step);
        assert_eq!(one(b"vCont;r20,10:1"), Run::Step);
        assert_eq!(one(b"vCont;r10,20:1"), Run::Range(0x10..0x20));
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
            let _ = parse(format!("{head}{tail}").as_bytes());
        }
    }
}

//! Packet framing: from bytes to whole, checked packets, and back.
//!
//! A frame is `$body#ss`, where `ss` is the sum of the body's bytes modulo 256 in hexadecimal
//! (GDB manual, Remote Serial Protocol, "Overview"). For any input, a [`Receiver`] holds at
//! most one packet of the advertised size, and a [`Sender`] only the frames that the client has not
//! acknowledged.

use std::collections::VecDeque;

/// Ctrl-C: between packets it is the interrupt request, inside one it is data.
const INTERRUPT: u8 = 0x03;

/// What the received bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A whole packet with a correct sum: [`Receiver::take_body`] returns it.
    Packet,
    /// `+`.
    Ack,
    /// `-`.
    Nack,
    /// Ctrl-C outside any packet.
    Interrupt,
    /// A byte between packets that begins none. No debugger sends it.
    Junk(u8),
    /// A packet whose sum is wrong. It is dropped.
    BadChecksum,
    /// A packet with a correct sum that is longer than advertised. It is dropped.
    TooLong,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Between packets.
    Idle,
    /// After `$`. If `keep` is `false`, the packet exceeds the limit, and only its sum is kept.
    Body { keep: bool },
    /// After `#`.
    FirstDigit { keep: bool },
    /// After `#` and one digit.
    SecondDigit { keep: bool, first: u8 },
}

/// Assembles packets from any split of the byte stream.
#[derive(Debug)]
pub(crate) struct Receiver {
    state: State,
    body: Vec<u8>,
    sum: u8,
    limit: usize,
    /// Junk between packets was reported, and no packet has come since.
    junk_seen: bool,
}

impl Receiver {
    /// A receiver that keeps packets of up to `limit` bytes of body.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            state: State::Idle,
            body: Vec::new(),
            sum: 0,
            limit,
            junk_seen: false,
        }
    }

    /// Takes bytes from the front of `input` until they make an event or are used up.
    pub(crate) fn next(&mut self, input: &mut &[u8]) -> Option<Event> {
        loop {
            let event = match self.state {
                State::Body { keep } => {
                    self.take_run(input, keep)?;
                    None
                }
                state => {
                    let (&byte, rest) = input.split_first()?;
                    *input = rest;
                    self.step(state, byte)
                }
            };
            if event.is_some() {
                return event;
            }
        }
    }

    /// Returns the body of the packet of the last event. Give it back with [`Receiver::reuse`].
    pub(crate) fn take_body(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.body)
    }

    /// Gives the buffer back, to save an allocation for each packet.
    pub(crate) fn reuse(&mut self, mut buffer: Vec<u8>) {
        buffer.clear();
        self.body = buffer;
    }

    /// Takes body bytes up to a `#` or `$`; `None` if there is neither yet.
    fn take_run(&mut self, input: &mut &[u8], keep: bool) -> Option<()> {
        // Neither byte occurs in a body: senders escape both ("Binary Data").
        let end = input.iter().position(|byte| matches!(byte, b'#' | b'$'));
        let (run, rest) = input.split_at_checked(end.unwrap_or(input.len()))?;
        self.sum = run
            .iter()
            .fold(self.sum, |sum, byte| sum.wrapping_add(*byte));
        let keep = keep && self.body.len() + run.len() <= self.limit;
        if keep {
            self.body.extend_from_slice(run);
        } else {
            self.body.clear();
        }
        self.state = State::Body { keep };
        *input = rest;
        let (&delimiter, rest) = input.split_first()?;
        *input = rest;
        if delimiter == b'#' {
            self.state = State::FirstDigit { keep };
        } else {
            tracing::debug!("a packet was cut short by the start of another: dropped");
            self.start();
        }
        Some(())
    }

    fn start(&mut self) {
        self.state = State::Body { keep: true };
        self.body.clear();
        self.sum = 0;
        self.junk_seen = false;
    }

    /// One byte outside a body.
    fn step(&mut self, state: State, byte: u8) -> Option<Event> {
        match (state, byte) {
            (_, b'$') => {
                self.start();
                None
            }
            (State::FirstDigit { keep }, _) => {
                self.state = State::SecondDigit { keep, first: byte };
                None
            }
            (State::SecondDigit { keep, first }, _) => {
                self.state = State::Idle;
                let sum = hex_digit(first).zip(hex_digit(byte));
                Some(match sum {
                    Some((high, low)) if (high << 4) | low == self.sum => {
                        if keep {
                            Event::Packet
                        } else {
                            Event::TooLong
                        }
                    }
                    _ => Event::BadChecksum,
                })
            }
            (_, b'+') => Some(Event::Ack),
            (_, b'-') => Some(Event::Nack),
            (_, INTERRUPT) => Some(Event::Interrupt),
            _ => {
                // One event for all of it: a client may send nothing else.
                let first = !std::mem::replace(&mut self.junk_seen, true);
                first.then_some(Event::Junk(byte))
            }
        }
    }
}

/// Frames replies, and keeps those that it may have to send again.
#[derive(Debug, Default)]
pub(crate) struct Sender {
    output: Vec<u8>,
    /// How much of `output`, from its start, the transport has taken.
    taken: usize,
    /// Frames sent and not acknowledged, oldest first.
    unacknowledged: VecDeque<Vec<u8>>,
    no_ack: bool,
}

impl Sender {
    /// Bytes for the client.
    pub(crate) fn output(&self) -> &[u8] {
        self.output.get(self.taken..).unwrap_or_default()
    }

    /// Returns the number of bytes kept: those for the transport, and the frames that the client may ask
    /// for again.
    pub(crate) fn backlog(&self) -> usize {
        let unacknowledged: usize = self.unacknowledged.iter().map(Vec::len).sum();
        self.output().len() + unacknowledged
    }

    /// The transport has taken `count` bytes.
    pub(crate) fn consume(&mut self, count: usize) {
        self.taken = self.taken.saturating_add(count);
        if self.taken >= self.output.len() {
            self.output.clear();
            self.taken = 0;
        } else if self.taken > self.output.len() / 2 {
            // A transport that never catches up must not make the buffer grow forever.
            self.output.drain(..self.taken);
            self.taken = 0;
        }
    }

    /// From now on neither side acknowledges (`QStartNoAckMode`).
    pub(crate) fn stop_acknowledging(&mut self) {
        self.no_ack = true;
        self.unacknowledged.clear();
    }

    /// Returns `true` if packets are acknowledged.
    pub(crate) fn acknowledges(&self) -> bool {
        !self.no_ack
    }

    /// Acknowledges a whole packet. The client has received all replies: otherwise it would not have sent
    /// the packet.
    pub(crate) fn acknowledge(&mut self) {
        if self.acknowledges() {
            self.unacknowledged.clear();
            self.output.push(b'+');
        }
    }

    /// Asks for a damaged packet again.
    pub(crate) fn refuse(&mut self) {
        if self.acknowledges() {
            self.output.push(b'-');
        }
    }

    /// Sends a packet. `body` goes out unchanged: escape binary data first.
    pub(crate) fn send(&mut self, body: &[u8]) {
        let start = self.output.len();
        let sum = body.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        self.output.reserve(body.len() + 4);
        self.output.push(b'$');
        self.output.extend_from_slice(body);
        self.output.push(b'#');
        push_hex(&mut self.output, sum);
        if self.acknowledges() {
            let frame = self.output.get(start..).unwrap_or_default().to_vec();
            self.unacknowledged.push_back(frame);
        }
    }

    /// The client has acknowledged the oldest frame.
    pub(crate) fn acknowledged(&mut self) {
        self.unacknowledged.pop_front();
    }

    /// The client received a damaged frame: sends it again.
    pub(crate) fn resend(&mut self) {
        if let Some(frame) = self.unacknowledged.front() {
            self.output.extend_from_slice(frame);
        }
    }
}

/// Returns the value of a hexadecimal digit.
pub(crate) fn hex_digit(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

/// Appends a byte as two hexadecimal digits.
pub(crate) fn push_hex(output: &mut Vec<u8>, byte: u8) {
    push_hex_bytes(output, &[byte]);
}

/// Appends bytes as pairs of hexadecimal digits.
pub(crate) fn push_hex_bytes(output: &mut Vec<u8>, data: &[u8]) {
    let digit = |nibble: u8| nibble + if nibble < 10 { b'0' } else { b'a' - 10 };
    let start = output.len();
    output.resize(start + 2 * data.len(), 0);
    let room = output.get_mut(start..).unwrap_or_default();
    for (pair, byte) in room.chunks_exact_mut(2).zip(data) {
        if let [high, low] = pair {
            *high = digit(byte >> 4);
            *low = digit(byte & 0xf);
        }
    }
}

/// Appends binary data, escaped ("Binary Data": `}` and the byte XOR 0x20).
pub(crate) fn push_escaped(output: &mut Vec<u8>, data: &[u8]) {
    let special = |byte: &u8| matches!(byte, b'#' | b'$' | b'}' | b'*');
    let mut rest = data;
    while !rest.is_empty() {
        let run = rest.iter().position(special).unwrap_or(rest.len());
        let (plain, tail) = rest.split_at_checked(run).unwrap_or((rest, &[]));
        output.extend_from_slice(plain);
        rest = match tail.split_first() {
            Some((byte, tail)) => {
                output.extend_from_slice(&[b'}', byte ^ 0x20]);
                tail
            }
            None => &[],
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn events(receiver: &mut Receiver, mut input: &[u8]) -> Vec<(Event, Vec<u8>)> {
        let mut seen = Vec::new();
        while let Some(event) = receiver.next(&mut input) {
            let body = if event == Event::Packet {
                receiver.take_body()
            } else {
                Vec::new()
            };
            seen.push((event, body));
        }
        assert!(input.is_empty(), "an exhausted receiver leaves nothing");
        seen
    }

    #[test]
    fn a_packet_with_a_good_sum_arrives_and_one_with_a_bad_sum_is_announced() {
        let mut receiver = Receiver::new(64);
        assert_eq!(
            events(&mut receiver, b"+$m0,4#fd$m0,4#fc$m0,4#FD"),
            [
                (Event::Ack, vec![]),
                (Event::Packet, b"m0,4".to_vec()),
                (Event::BadChecksum, vec![]),
                (Event::Packet, b"m0,4".to_vec()),
            ]
        );
    }

    #[test]
    fn sum_digits_that_are_not_hexadecimal_are_a_bad_sum() {
        let mut receiver = Receiver::new(64);
        assert_eq!(
            events(&mut receiver, b"$g#zz$g#67"),
            [(Event::BadChecksum, vec![]), (Event::Packet, b"g".to_vec())]
        );
    }

    #[test]
    fn ctrl_c_is_an_interrupt_between_packets_and_data_inside_one() {
        let mut receiver = Receiver::new(64);
        assert_eq!(
            events(&mut receiver, b"\x03$X\x03#5b\x03"),
            [
                (Event::Interrupt, vec![]),
                (Event::Packet, b"X\x03".to_vec()),
                (Event::Interrupt, vec![]),
            ]
        );
    }

    #[test]
    fn a_hundred_megabytes_without_an_end_are_not_kept() {
        let mut receiver = Receiver::new(1024);
        assert_eq!(events(&mut receiver, b"$"), []);
        let megabyte = vec![b'a'; 1 << 20];
        for _ in 0..100 {
            assert_eq!(events(&mut receiver, &megabyte), []);
            assert!(receiver.body.capacity() <= 4096);
        }
        assert_eq!(
            events(&mut receiver, b"$g#67"),
            [(Event::Packet, b"g".to_vec())],
            "a new packet is understood at its first byte"
        );
    }

    #[test]
    fn a_whole_packet_over_the_limit_is_announced_and_the_next_one_arrives() {
        let mut receiver = Receiver::new(4);
        // 5 * 'a' = 0x1e5.
        assert_eq!(
            events(&mut receiver, b"$aaaaa#e5$aaaaa#e6$aaaa#84"),
            [
                (Event::TooLong, vec![]),
                (Event::BadChecksum, vec![]),
                (Event::Packet, b"aaaa".to_vec()),
            ]
        );
    }

    #[test]
    fn a_nack_sends_the_oldest_unacknowledged_frame_again_and_an_ack_drops_it() {
        let mut sender = Sender::default();
        sender.send(b"O61");
        sender.send(b"OK");
        sender.consume(usize::MAX);
        sender.resend();
        assert_eq!(sender.output(), b"$O61#b6");
        sender.consume(usize::MAX);
        sender.acknowledged();
        sender.resend();
        assert_eq!(sender.output(), b"$OK#9a");
    }

    #[test]
    fn without_acknowledgements_nothing_is_kept_or_sent_again() {
        let mut sender = Sender::default();
        sender.send(b"OK");
        sender.stop_acknowledging();
        sender.consume(usize::MAX);
        sender.acknowledge();
        sender.refuse();
        sender.resend();
        sender.send(b"OK");
        sender.resend();
        assert_eq!(sender.output(), b"$OK#9a");
    }

    proptest! {
        #[test]
        fn any_split_of_any_stream_gives_the_same_events(
            stream in proptest::collection::vec(
                prop_oneof![
                    Just(b'$'), Just(b'#'), Just(b'+'), Just(b'-'), Just(3u8), Just(b'}'),
                    Just(b'6'), Just(b'7'), Just(b'g'), any::<u8>()
                ],
                0..400,
            ),
            cuts in proptest::collection::vec(1usize..40, 1..40),
        ) {
            let whole = events(&mut Receiver::new(32), &stream);
            let mut receiver = Receiver::new(32);
            let mut parts = Vec::new();
            let mut rest = stream.as_slice();
            let mut cuts = cuts.iter().cycle();
            while !rest.is_empty() {
                let (part, after) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
                parts.extend(events(&mut receiver, part));
                rest = after;
            }
            prop_assert_eq!(whole, parts);
        }

        #[test]
        fn what_a_sender_frames_a_receiver_understands(
            data in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let mut body = Vec::new();
            push_escaped(&mut body, &data);
            let mut sender = Sender::default();
            sender.send(&body);
            let seen = events(&mut Receiver::new(1024), sender.output());
            prop_assert_eq!(seen, vec![(Event::Packet, body)]);
        }
    }
}

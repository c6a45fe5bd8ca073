//! The clock chip (MC146818) at ports 0x70 and 0x71: it is no interrupt controller, and the same in every mode.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::prelude::*;

use super::MODE;

const INDEX: u16 = 0x70;
const DATA: u16 = 0x71;

fn host_seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs()
}

#[test]
fn it_shows_the_hosts_time_and_an_end_of_each_update() {
    let before = host_seconds();
    let mut p = Program::new(MODE);
    let mut register = |index| {
        p.outb(INDEX, index);
        p.inb(DATA)
    };
    let [second, minute, hour] = [0, 2, 4].map(&mut register);
    let a: [_; 8] = std::array::from_fn(|_| register(0x0a));
    let [b, c, d] = [0x0b, 0x0c, 0x0d].map(&mut register);
    let base = [0x15, 0x16].map(&mut register);
    let log = p.run();
    let after = host_seconds();
    // BCD.
    let number = |handle| log[handle] / 16 * 10 + log[handle] % 16;
    let shown = number(hour) * 3600 + number(minute) * 60 + number(second);
    let late = (86_400 + shown - before % 86_400) % 86_400;
    assert!(late <= after - before, "{late} s after the start");
    assert!(a.iter().any(|&a| log[a] == 0x26), "updating forever");
    assert_eq!([log[b], log[c], log[d]], [0x02, 0, 0x80]);
    assert_eq!(log[base[0]] | log[base[1]] << 8, 639);
}

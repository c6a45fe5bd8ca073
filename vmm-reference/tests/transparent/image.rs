//! The guests in the image, as its records say.

/// All guests, assembled by `build.rs`.
pub static IMAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/transparent_image.bin"));

/// Where the image says where its records and its default handlers are.
const TABLE: usize = 0x20;

/// The mode in which a guest begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Long,
    User,
    Compat,
    Protected,
    Protected3,
    Paged3,
    Real,
}

/// A gate of the guest's IDT.
#[derive(Clone, Copy, Debug)]
pub struct Gate {
    pub vector: u8,
    pub ist: u8,
    pub kind: u8,
    pub handler: u64,
    /// 0: the kernel's code segment.
    pub selector: u16,
}

/// Where the call gates lead.
#[derive(Clone, Debug)]
pub struct Call {
    pub handler: u64,
    pub selector: u16,
    pub parameters: u8,
}

/// A place where the guest waits for an interrupt, and the place where it goes on then.
#[derive(Clone, Copy, Debug)]
pub struct Wait {
    pub at: u64,
    pub until: u64,
}

/// A guest.
#[derive(Clone, Debug)]
pub struct Guest {
    pub name: String,
    pub mode: Mode,
    pub entry: u64,
    pub gates: Vec<Gate>,
    pub waits: Vec<Wait>,
    pub call: Option<Call>,
    pub cpus: u16,
    /// Code that is not in the image, and where it goes.
    pub code: Option<(u64, Vec<u8>)>,
}

/// Where the handlers for vectors without a gate are.
pub fn stray() -> u64 {
    word(TABLE + 8).into()
}

fn word(place: usize) -> u32 {
    u32::from_le_bytes(IMAGE[place..place + 4].try_into().unwrap())
}

/// Where an address is in the image.
fn offset(address: u32) -> usize {
    usize::try_from(u64::from(address) - crate::layout::IMAGE).unwrap()
}

/// All guests, in the order of the image.
pub fn guests() -> Vec<Guest> {
    let mut guests: Vec<Guest> = Vec::new();
    for place in (offset(word(TABLE))..offset(word(TABLE + 4))).step_by(16) {
        let [kind, a, b, c] = [0, 4, 8, 12].map(|field| word(place + field));
        if kind == 1 {
            guests.push(guest(a, b, c));
            continue;
        }
        let guest = guests.last_mut().expect("a guest comes first");
        let byte = |place: u32| a.to_le_bytes()[usize::try_from(place).unwrap()];
        match kind {
            2 => guest.gates.push(Gate {
                vector: byte(0),
                ist: byte(1),
                kind: byte(2),
                handler: b.into(),
                selector: u16::try_from(c).unwrap(),
            }),
            3 => guest.waits.push(Wait {
                at: a.into(),
                until: b.into(),
            }),
            4 => guest.cpus = u16::try_from(a).unwrap(),
            5 => {
                guest.call = Some(Call {
                    handler: a.into(),
                    selector: u16::try_from(b).unwrap(),
                    parameters: u8::try_from(c).unwrap(),
                });
            }
            other => panic!("a record of kind {other}"),
        }
    }
    guests
}

fn guest(name: u32, entry: u32, mode: u32) -> Guest {
    let text = &IMAGE[offset(name)..];
    let end = text.iter().position(|byte| *byte == 0).unwrap();
    Guest {
        name: String::from_utf8(text[..end].to_vec()).unwrap(),
        mode: match mode {
            1 => Mode::Long,
            2 => Mode::User,
            3 => Mode::Compat,
            4 => Mode::Protected,
            5 => Mode::Protected3,
            6 => Mode::Real,
            7 => Mode::Paged3,
            other => panic!("mode {other}"),
        },
        entry: entry.into(),
        gates: Vec::new(),
        waits: Vec::new(),
        call: None,
        cpus: 1,
        code: None,
    }
}

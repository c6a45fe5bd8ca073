//! `Z0` and `Z1` with conditions and commands (GDB manual, "Packets", insert breakpoint):
//! `Z0,addr,kind;X len,bytes…;cmds:persist,X len,bytes…`.

use super::{Request, bytes_from_hex, number, split_once};
use crate::agent::{Program, ProgramError};
use crate::breakpoints::{HitProgram, Point, PointKind};

/// Parses what follows `Z`. `None` if it makes no sense.
pub(super) fn insert(rest: &[u8]) -> Option<Request<'_>> {
    let (point, options) = split_once(rest, b';')?;
    let (kind, place) = split_once(point, b',')?;
    let kind = match kind {
        b"0" => PointKind::Software,
        b"1" => PointKind::Hardware,
        // Watchpoints have none.
        _ => return None,
    };
    let (address, length) = split_once(place, b',')?;
    number(length)?;
    let point = Point::breakpoint(kind, number(address)?);
    let mut conditions = Vec::new();
    let mut commands = Vec::new();
    for option in options.split(|byte| *byte == b';') {
        match option {
            // GDB sends an empty list, too.
            [] => {}
            [b'X', ..] => expressions(option, &mut conditions)?,
            _ => {
                let (persist, list) = split_once(option.strip_prefix(b"cmds:")?, b',')?;
                // Whether they run without a client, too. They do not: nothing of a client that has gone is
                // left in the guest.
                number(persist)?;
                expressions(list, &mut commands)?;
            }
        }
    }
    let programs = |list: Vec<Vec<u8>>| -> Result<Vec<Program>, ProgramError> {
        list.iter().map(|code| Program::new(code)).collect()
    };
    let program = programs(conditions).and_then(|conditions| {
        Ok(HitProgram {
            conditions,
            commands: programs(commands)?,
        })
    });
    Some(Request::Insert { point, program })
}

/// Appends the expressions of a list: each is `X`, its length, a comma, and its bytes in hexadecimal. There is
/// nothing between them.
fn expressions(list: &[u8], to: &mut Vec<Vec<u8>>) -> Option<()> {
    let mut rest = list;
    while let [b'X', tail @ ..] = rest {
        let (length, tail) = split_once(tail, b',')?;
        let digits = usize::try_from(number(length)?).ok()?.checked_mul(2)?;
        let (code, tail) = tail.split_at_checked(digits)?;
        to.push(bytes_from_hex(code)?);
        rest = tail;
    }
    rest.is_empty().then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(rest: &[u8]) -> Option<(Point, Result<HitProgram, ProgramError>)> {
        match insert(rest)? {
            Request::Insert { point, program } => Some((point, program)),
            other => panic!("{other:?}"),
        }
    }

    fn program(code: &[u8]) -> Program {
        Program::new(code).unwrap()
    }

    #[test]
    fn conditions_and_commands_are_taken_apart() {
        let (point, hit) = parsed(b"0,1000,1;X3,220127X1,27;cmds:1,X3,220227").unwrap();
        assert_eq!(point, Point::breakpoint(PointKind::Software, 0x1000));
        let hit = hit.unwrap();
        assert_eq!(
            hit.conditions,
            [program(&[0x22, 1, 0x27]), program(&[0x27])]
        );
        assert_eq!(hit.commands, [program(&[0x22, 2, 0x27])]);
        assert_eq!(hit.size(), 7);
        let (point, hit) = parsed(b"1,1000,1;cmds:0,X1,27").unwrap();
        assert_eq!(point, Point::breakpoint(PointKind::Hardware, 0x1000));
        assert!(hit.unwrap().conditions.is_empty());
        let (_, hit) = parsed(b"0,1000,1;").unwrap();
        assert_eq!(hit, Ok(HitProgram::default()));
    }

    #[test]
    fn what_makes_no_sense_is_none_and_what_cannot_run_says_why() {
        for wrong in [
            b"2,1000,4;X1,27".as_slice(),
            b"0,1000;X1,27",
            b"0,1000,1;X2,27",
            b"0,1000,1;X1,2",
            b"0,1000,1;X1,zz",
            b"0,1000,1;X1,2727",
            b"0,1000,1;Xffffffffffffffff,27",
            b"0,1000,1;X1",
            b"0,1000,1;cmds:",
            b"0,1000,1;cmds:1",
            b"0,1000,1;cmds:x,X1,27",
            b"0,1000,1;other",
        ] {
            assert_eq!(parsed(wrong), None, "{}", wrong.escape_ascii());
        }
        let (_, hit) = parsed(b"0,1000,1;X1,0c").unwrap();
        assert!(hit.unwrap_err().to_string().contains("\"trace\""));
    }
}

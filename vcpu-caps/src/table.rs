//! Aligned text tables, for reports and plans.

use alloc::string::String;
use core::fmt;

/// Blanks between two columns.
const GAP: usize = 2;

/// Writes rows of `N` columns, two spaces apart. The last column is not padded; therefore no line
/// ends in blanks.
pub(crate) fn write_table<const N: usize>(
    f: &mut fmt::Formatter<'_>,
    header: [&str; N],
    rows: &[[String; N]],
) -> fmt::Result {
    let mut widths = header.map(|cell| cell.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    write_row(f, &widths, header.iter().copied())?;
    for row in rows {
        writeln!(f)?;
        write_row(f, &widths, row.iter().map(String::as_str))?;
    }
    Ok(())
}

fn write_row<'a>(
    f: &mut fmt::Formatter<'_>,
    widths: &[usize],
    cells: impl Iterator<Item = &'a str>,
) -> fmt::Result {
    // Blanks owed before the next cell that is not empty.
    let mut owed = 0;
    for (width, cell) in widths.iter().zip(cells) {
        if cell.is_empty() {
            owed += width + GAP;
        } else {
            write!(f, "{:owed$}{cell}", "")?;
            owed = width.saturating_sub(cell.chars().count()) + GAP;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use alloc::string::{String, ToString};
    use core::fmt;

    use super::write_table;

    struct Table([[String; 3]; 2]);
    impl fmt::Display for Table {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write_table(f, ["a", "bb", "c"], &self.0)
        }
    }

    #[test]
    fn columns_align_and_no_line_ends_in_blanks() {
        let table = Table([
            ["x", "", "z"].map(String::from),
            ["long", "y", ""].map(String::from),
        ]);
        assert_eq!(table.to_string(), "a     bb  c\nx         z\nlong  y");
    }
}

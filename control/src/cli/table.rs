//! Table: rows under their names, each column as wide as it must be.

use std::io::{self, Write};

/// Writes `rows` under `names`.
pub(super) fn table<const N: usize>(
    out: &mut dyn Write,
    names: [&str; N],
    rows: &[[String; N]],
) -> io::Result<()> {
    let width = |at: usize| {
        let cells = rows.iter().map(|row| row[at].chars().count());
        cells.chain([names[at].chars().count()]).max().unwrap_or_default()
    };
    for row in std::iter::once(&names.map(str::to_owned)).chain(rows) {
        let cells = row.iter().enumerate().map(|(at, cell)| {
            let width = width(at);
            format!("{cell:width$}")
        });
        writeln!(out, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(())
}

pub(super) fn yes(it: bool) -> String {
    if it { "yes" } else { "no" }.to_owned()
}

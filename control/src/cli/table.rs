//! Table: rows under their names, each column as wide as it must be.

use std::{array, io, iter};

/// Writes `rows` under `names`.
pub(super) fn table<const N: usize>(
    out: &mut dyn io::Write,
    names: [&str; N],
    rows: impl Iterator<Item = [String; N]>,
) -> io::Result<()> {
    let rows: Vec<_> = iter::once(names.map(str::to_owned)).chain(rows).collect();
    let width = |at: usize| rows.iter().map(|it| it[at].chars().count()).max();
    let widths: [_; N] = array::from_fn(|at| width(at).unwrap_or_default());
    for row in &rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        writeln!(out, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(())
}

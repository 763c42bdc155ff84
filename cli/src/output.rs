//! How things are printed: for people, or as JSON.

use client::{Attr, FileKind};
use serde_json::{Value, json};
use std::io::Write;

/// Says something to whoever started a process that goes on: standard output may be a file on a full disk by then, which
/// shall end nobody.
pub fn say(line: std::fmt::Arguments) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// And what went wrong.
pub fn complain(line: std::fmt::Arguments) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Bytes as people read them.
pub fn human(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// A name as it can be shown: bytes that are no text, and control characters, are escaped.
pub fn show(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(name);
    let clean = !text.contains(char::REPLACEMENT_CHARACTER) && !text.chars().any(char::is_control);
    if clean { text.into_owned() } else { format!("{}", name.escape_ascii()) }
}

/// drwxr-xr-x and the like.
pub fn mode(attr: &Attr) -> String {
    let kind = match attr.kind {
        FileKind::File => '-',
        FileKind::Directory => 'd',
        FileKind::Symlink => 'l',
        FileKind::Fifo => 'p',
        FileKind::Socket => 's',
        FileKind::CharacterDevice => 'c',
        FileKind::BlockDevice => 'b',
    };
    let bit = |i: u32, c: char| if attr.mode & (1 << i) != 0 { c } else { '-' };
    let bits: String = (0..9).rev().map(|i| bit(i, ['x', 'w', 'r'][(i % 3) as usize])).collect();
    format!("{kind}{bits}")
}

/// Seconds since 1970 as a date and time in UTC.
pub fn time(ns: i64) -> String {
    let secs = ns.div_euclid(1_000_000_000);
    let (days, rest) = (secs.div_euclid(86_400), secs.rem_euclid(86_400));
    // Civil from days (Howard Hinnant, "chrono-compatible low-level date algorithms").
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}", rest / 3600, rest / 60 % 60, rest % 60)
}

/// Attributes as JSON.
pub fn attr_json(path: &[u8], attr: &Attr) -> Value {
    let kind = match attr.kind {
        FileKind::File => "file",
        FileKind::Directory => "directory",
        FileKind::Symlink => "symlink",
        FileKind::Fifo => "fifo",
        FileKind::Socket => "socket",
        FileKind::CharacterDevice => "character device",
        FileKind::BlockDevice => "block device",
    };
    json!({
        "path": String::from_utf8_lossy(path),
        "path_bytes": String::from_utf8(path.to_vec()).is_err().then(|| path.to_vec()),
        "id": attr.file.0,
        "kind": kind,
        "mode": attr.mode,
        "uid": attr.uid,
        "gid": attr.gid,
        "mtime_ns": attr.mtime_ns,
        "length": attr.length,
        "count": attr.count,
        "open": attr.open.is_some(),
        "target": (!attr.target.is_empty()).then(|| String::from_utf8_lossy(&attr.target)),
    })
}

/// Prints a value as one line of JSON.
pub fn print(value: &Value) {
    println!("{value}");
}

#[cfg(test)]
mod tests {
    #[test]
    fn dates_are_right() {
        assert_eq!(super::time(0), "1970-01-01 00:00:00");
        assert_eq!(super::time(951_782_400_000_000_000), "2000-02-29 00:00:00");
        assert_eq!(super::time(1_795_362_625_000_000_000), "2026-11-22 15:50:25");
    }

    #[test]
    fn sizes_are_short() {
        assert_eq!(super::human(0), "0 B");
        assert_eq!(super::human(1536), "1.5 KiB");
    }
}

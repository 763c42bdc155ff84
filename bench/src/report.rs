//! The table, and the same as JSON.

use crate::limits::Limits;
use crate::load::Row;
use serde_json::json;

/// Bytes below which CPU-seconds per GiB say nothing.
const GIB_COUNTS: u64 = 100_000_000;
/// The percentiles that are shown.
pub(crate) const QUANTILES: [(&str, f64); 4] =
    [("p50 us", 0.5), ("p99 us", 0.99), ("p99.9 us", 0.999), ("max us", 1.0)];

/// Prints what was measured.
pub(crate) fn print(rows: &[Row], limits: &Limits, json: bool) {
    if json {
        rows.iter().for_each(|row| println!("{}", line(row, limits)));
        return println!("{}", json!({ "limits": of_machine(limits) }));
    }
    let titles = QUANTILES.map(|(title, _)| format!("{title:>9}")).join(" ");
    let mut group = "";
    for r in rows {
        if r.group != group {
            group = &r.group;
            println!("\n{group}");
            println!(
                "  {:<22} {:>9} {:>9} {titles} {:>10} {:>9}",
                "", "MB/s", "op/s", "CPU s/GiB", "CPU us/op"
            );
        }
        let times = QUANTILES.map(|(_, q)| format!("{:>9.0}", r.at(q))).join(" ");
        println!(
            "  {:<22} {:>9} {:>9.0} {times} {:>10} {:>9.1}",
            r.name,
            megabytes(r),
            r.ops(),
            cpu_of_gib(r),
            r.cpu_per_op()
        );
        if let Some((share, of)) = share(r, limits) {
            println!("  {:<22} {share:.2} x {of}", "");
        }
    }
    println!("\nthis machine, in the same run:");
    for (name, value) in machine(limits) {
        println!("  {name:<40} {value:>9.0}");
    }
}

pub(crate) fn megabytes(row: &Row) -> String {
    if row.bytes > 0 { format!("{:.1}", row.mbs()) } else { "-".into() }
}

pub(crate) fn cpu_of_gib(row: &Row) -> String {
    if row.bytes > GIB_COUNTS { format!("{:.2}", row.cpu_per_gib()) } else { "-".into() }
}

/// What the machine does by itself, with names.
pub(crate) fn machine(limits: &Limits) -> [(&'static str, f64); 6] {
    [
        ("direct sequential write, MB/s", limits.write_mbs),
        ("the same, rewriting, MB/s", limits.rewrite_mbs),
        ("direct sequential read, MB/s", limits.read_mbs),
        ("loopback TCP, one stream, MB/s", limits.tcp_mbs),
        ("memcpy of 1 MiB, MB/s", limits.memcpy_mbs),
        ("4 KiB O_DSYNC write, p50, us", limits.dsync_us),
    ]
}

fn of_machine(limits: &Limits) -> serde_json::Value {
    json!({"direct_write_mb_per_s": limits.write_mbs, "direct_rewrite_mb_per_s": limits.rewrite_mbs,
        "direct_read_mb_per_s": limits.read_mbs, "loopback_tcp_mb_per_s": limits.tcp_mbs,
        "memcpy_mb_per_s": limits.memcpy_mbs, "dsync_4k_p50_us": limits.dsync_us})
}

fn line(r: &Row, limits: &Limits) -> serde_json::Value {
    let share = share(r, limits);
    json!({"load": r.group, "kind": r.name, "operations": r.times.len(), "seconds": r.seconds, "bytes": r.bytes,
        "mb_per_s": r.mbs(), "ops_per_s": r.ops(), "p50_us": r.at(0.5), "p90_us": r.at(0.9), "p99_us": r.at(0.99),
        "p999_us": r.at(0.999), "max_us": r.at(1.0), "cpu_s_per_gib": (r.bytes > 0).then(|| r.cpu_per_gib()),
        "cpu_us_per_op": r.cpu_per_op(), "share": share.map(|s| s.0), "share_of": share.map(|s| s.1)})
}

/// How it stands to what the machine can do by itself.
pub(crate) fn share(row: &Row, limits: &Limits) -> Option<(f64, &'static str)> {
    match (row.group.split(' ').next()?, row.name.as_str()) {
        ("put", _) => Some((row.mbs() / (limits.write_mbs / 3.0), "a direct write, a third of it")),
        ("get", "hot read") => Some((row.mbs() / limits.tcp_mbs, "loopback TCP")),
        ("get", _) => Some((row.mbs() / limits.read_mbs, "a direct read")),
        ("append", _) => Some((row.at(0.5) / limits.dsync_us, "a 4 KiB O_DSYNC write (p50)")),
        ("random", "durable write") => Some((row.at(0.5) / limits.dsync_us, "a 4 KiB O_DSYNC write (p50)")),
        _ => None,
    }
}

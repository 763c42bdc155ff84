//! The table, and the same as JSON.

use crate::limits::Limits;
use crate::load::Row;
use serde_json::json;

/// Prints what was measured.
pub fn print(rows: &[Row], limits: &Limits, json: bool) {
    if json {
        for r in rows {
            println!(
                "{}",
                json!({"load": r.name, "operations": r.operations, "seconds": r.seconds,
                "mb_per_s": r.mbs(), "ops_per_s": r.ops(), "p50_us": r.p50_us, "p99_us": r.p99_us, "max_us": r.max_us,
                "cpu_s_per_gib": r.cpu_per_gib(), "cpu_us_per_op": r.cpu_per_op()})
            );
        }
        println!(
            "{}",
            json!({"limits": {"direct_write_mb_per_s": limits.write_mbs, "direct_rewrite_mb_per_s": limits.rewrite_mbs, "direct_read_mb_per_s": limits.read_mbs,
            "loopback_tcp_mb_per_s": limits.tcp_mbs, "memcpy_mb_per_s": limits.memcpy_mbs, "dsync_4k_p50_us": limits.dsync_us}})
        );
        return;
    }
    println!(
        "{:<34} {:>9} {:>9} {:>9} {:>9} {:>9} {:>10} {:>9}",
        "load", "MB/s", "op/s", "p50 us", "p99 us", "max us", "CPU s/GiB", "CPU us/op"
    );
    for r in rows {
        let gib = if r.bytes > 100_000_000 { format!("{:.2}", r.cpu_per_gib()) } else { "-".into() };
        println!(
            "{:<34} {:>9.1} {:>9.0} {:>9.0} {:>9.0} {:>9.0} {gib:>10} {:>9.1}",
            r.name,
            r.mbs(),
            r.ops(),
            r.p50_us,
            r.p99_us,
            r.max_us,
            r.cpu_per_op()
        );
    }
    println!("\nthis machine, in the same run:");
    println!(
        "  direct sequential write  {:>9.0} MB/s   (/3: {:.0})",
        limits.write_mbs,
        limits.write_mbs / 3.0
    );
    println!(
        "  the same, rewriting      {:>9.0} MB/s   (/3: {:.0})",
        limits.rewrite_mbs,
        limits.rewrite_mbs / 3.0
    );
    println!("  direct sequential read   {:>9.0} MB/s", limits.read_mbs);
    println!("  loopback TCP, one stream {:>9.0} MB/s", limits.tcp_mbs);
    println!("  memcpy of 1 MiB          {:>9.0} MB/s", limits.memcpy_mbs);
    println!("  4 KiB O_DSYNC write, p50 {:>9.0} us", limits.dsync_us);
    for r in rows {
        if let Some((share, of)) = share(r, limits) {
            println!("  {}: {share:.2} x {of}", r.name);
        }
    }
}

fn share(row: &Row, limits: &Limits) -> Option<(f64, &'static str)> {
    match row.name.split(',').next()? {
        "put" => Some((row.mbs() / (limits.write_mbs / 3.0), "(direct write / 3)")),
        "get" if row.name.contains("hot") => Some((row.mbs() / limits.tcp_mbs, "loopback TCP")),
        "get" => Some((row.mbs() / limits.read_mbs, "direct read")),
        "append" => Some((row.p50_us / limits.dsync_us, "a 4 KiB O_DSYNC write (p50)")),
        _ => None,
    }
}

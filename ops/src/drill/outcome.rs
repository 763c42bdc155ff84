//! What repeats of one drill came to, and how it is told: as text, as JSON, as a row of a table.

use super::{DRILLS, Drill};
use anyhow::Context;
use serde_json::json;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

/// The longest waits of one kind of operation.
#[derive(Default)]
struct Gaps {
    /// The longest before the blow.
    before: Duration,
    /// The longest after it, of each repeat.
    after: Vec<Duration>,
    /// Operations a second before it, and after it without the longest wait, of each repeat.
    rates: Vec<[f64; 2]>,
}

impl Gaps {
    /// The most before the blow and the least after it: how much slower it may be then.
    fn rates(&self) -> Option<[f64; 2]> {
        let before = self.rates.iter().map(|rates| rates[0]).reduce(f64::max)?;
        Some([before, self.rates.iter().map(|rates| rates[1]).reduce(f64::min)?])
    }
}

/// What repeats of one drill came to. Whatever is lost, twice or corrupt fails a drill at once, so
/// there is no number of it.
pub struct Outcome {
    drill: &'static Drill,
    repeats: u32,
    gaps: BTreeMap<&'static str, Gaps>,
    /// From a start of everything until all was in session.
    pub(super) recovery: Vec<Duration>,
    /// From the blow until every chunk had all its members again.
    pub(super) whole: Vec<Duration>,
    facts: BTreeMap<&'static str, u64>,
    /// What else is to be told.
    pub(super) notes: Vec<String>,
}

impl Outcome {
    pub(super) fn new(drill: &'static Drill, repeats: u32) -> Outcome {
        Outcome {
            drill,
            repeats,
            gaps: BTreeMap::new(),
            recovery: vec![],
            whole: vec![],
            facts: BTreeMap::new(),
            notes: vec![],
        }
    }

    /// The longest wait after the blow, in one repeat.
    pub(super) fn gap(&mut self, kind: &'static str, longest: Duration) {
        self.gaps.entry(kind).or_default().after.push(longest);
    }

    /// The longest wait before the blow.
    pub(super) fn calm(&mut self, kind: &'static str, longest: Duration) {
        let known = &mut self.gaps.entry(kind).or_default().before;
        *known = longest.max(*known);
    }

    /// Operations a second before the blow, and after it without the longest wait, in one repeat.
    pub(super) fn rates(&mut self, kind: &'static str, before: f64, after: f64) {
        self.gaps.entry(kind).or_default().rates.push([before, after]);
    }

    /// So many more of something.
    pub(super) fn count(&mut self, what: &'static str, more: u64) {
        *self.facts.entry(what).or_default() += more;
    }

    /// As text, for people.
    pub fn text(&self) -> String {
        let mut text = format!("{}: {}, {} times\n", self.drill.name, self.drill.what, self.repeats);
        let mut line = |words: String| {
            let _ = writeln!(text, "  {words}");
        };
        for (kind, gaps) in &self.gaps {
            let (p50, p99, max) = spread(&gaps.after);
            let before = gaps.before.as_millis();
            let rates = gaps.rates().map_or(String::new(), |[before, after]| {
                format!("   at most {before:.0}/s before, at least {after:.0}/s after")
            });
            line(format!(
                "longest gap of {kind:<10} p50 {p50:>6} ms   p99 {p99:>6} ms   max {max:>6} ms   before {before:>5} ms{rates}"
            ));
        }
        if !self.recovery.is_empty() {
            let (p50, _, max) = spread(&self.recovery);
            line(format!("healthy again after      p50 {p50:>6} ms   max {max:>6} ms"));
        }
        if !self.whole.is_empty() {
            let (p50, _, max) = spread(&self.whole);
            line(format!("all members again after  p50 {p50:>6} ms   max {max:>6} ms"));
        }
        self.notes.iter().for_each(|note| line(note.clone()));
        let facts: Vec<String> = self.facts.iter().map(|(what, n)| format!("{n} {what}")).collect();
        line(format!("{}; lost 0, duplicated 0, corrupt 0, {}", facts.join(", "), self.errors()));
        text
    }

    /// As one line of JSON.
    pub fn json(&self) -> String {
        let gaps: BTreeMap<&str, _> = self
            .gaps
            .iter()
            .map(|(kind, gaps)| {
                let (p50, p99, max) = spread(&gaps.after);
                let [most_before, least_after] = gaps.rates().map_or([None; 2], |rates| rates.map(Some));
                (
                    *kind,
                    json!({"p50": p50, "p99": p99, "max": max, "before": gaps.before.as_millis() as u64,
                    "per_s_before_most": most_before, "per_s_after_least": least_after}),
                )
            })
            .collect();
        let spread_of = |times: &[Duration]| {
            let (p50, p99, max) = spread(times);
            (!times.is_empty()).then(|| json!({"p50": p50, "p99": p99, "max": max}))
        };
        json!({
            "drill": self.drill.name, "repeats": self.repeats, "gap_ms": gaps, "counts": self.facts,
            "healthy_ms": spread_of(&self.recovery), "all_members_ms": spread_of(&self.whole),
            "notes": self.notes, "lost": 0, "duplicated": 0, "corrupt": 0,
        })
        .to_string()
    }

    /// As a row of the table of all drills.
    fn row(&self) -> String {
        let cell = |kind: &str| match self.gaps.get(kind).map(|gaps| spread(&gaps.after)) {
            Some((p50, p99, max)) => format!("{p50} / {p99} / {max}"),
            None => "-".into(),
        };
        let whole = match self.whole.is_empty() {
            true => "-".into(),
            false => format!("{:.1}", f64::from(spread(&self.whole).2 as u32) / 1e3),
        };
        let facts = self.facts.iter().map(|(what, n)| format!("{n} {what}"));
        // Waits that have no column of their own.
        let others = self.gaps.keys().filter(|kind| !COLUMNS.contains(kind));
        let facts: Vec<String> =
            others.map(|kind| format!("{kind}: {} ms", cell(kind))).chain(facts).collect();
        format!(
            "| [{0}]({0}.md) | {1} | {2} | {3} | {4} | {5} | {6} | {whole} | {7} |",
            self.drill.name,
            self.drill.what,
            self.repeats,
            cell(COLUMNS[0]),
            cell(COLUMNS[1]),
            cell(COLUMNS[2]),
            cell(COLUMNS[3]),
            facts.join(", ")
        )
    }

    fn errors(&self) -> &'static str {
        if self.drill.errors_allowed() { "errors allowed" } else { "errors 0" }
    }
}

/// The kinds of operations that have a column of the table.
const COLUMNS: [&str; 4] = ["appends", "metadata", "put", "reads"];
/// Lines between which the table lies in a file.
const TABLE: [&str; 2] = ["<!-- drills: begin -->", "<!-- drills: end -->"];
const HEAD: &str = "\
| drill | what happens | repeats | appends | creates | writes of a put | reads | all members | checked |
|---|---|---|---|---|---|---|---|---|
";

/// Writes what came of drills into the table in a Markdown file: their rows are new, others stay.
pub fn write_table(path: &Path, outcomes: &[Outcome]) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let place =
        text.split_once(TABLE[0]).and_then(|(before, rest)| Some((before, rest.split_once(TABLE[1])?)));
    let (before, (old, after)) =
        place.with_context(|| format!("{}: no lines {} and {}", path.display(), TABLE[0], TABLE[1]))?;
    let row = |drill: &Drill| {
        let new = outcomes.iter().find(|o| o.drill.name == drill.name).map(Outcome::row);
        let start = format!("| [{}]", drill.name);
        new.or_else(|| old.lines().find(|line| line.starts_with(&start)).map(str::to_owned))
    };
    let rows: String = DRILLS.iter().filter_map(row).map(|row| row + "\n").collect();
    let text = format!("{before}{}\n{HEAD}{rows}{}{after}", TABLE[0], TABLE[1]);
    std::fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

/// Median, 99th percentile and maximum, in milliseconds.
fn spread(times: &[Duration]) -> (u64, u64, u64) {
    let mut sorted: Vec<u64> = times.iter().map(|t| t.as_millis() as u64).collect();
    sorted.sort_unstable();
    let at = |q: f64| {
        let n = ((sorted.len() as f64 * q).ceil() as usize).max(1);
        sorted.get(n - 1).copied().unwrap_or(0)
    };
    (at(0.5), at(0.99), at(1.0))
}

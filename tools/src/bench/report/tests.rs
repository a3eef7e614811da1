//! A report made of invented figures.

use super::{Report, number};
use crate::bench::{
    campaign::{Disturbed, Outcome, Trouble},
    machine::Machine,
    row::{Figures, Pair},
    rows::ROWS,
};

fn figures(ops: f64, cpu: f64) -> Figures {
    [("ops", ops), ("cpu", cpu)].map(|(name, value)| (name.to_owned(), value)).into()
}

fn outcome(id: &str, ours: f64) -> Outcome {
    let row = ROWS.iter().find(|row| row.id == id).unwrap();
    let pairs = (0..5)
        .map(|n| {
            let wobble = 1.0 + f64::from(n) / 100.0;
            Pair { official: figures(1000.0 * wobble, 40.0), ours: figures(ours, 4.0 * wobble) }
        })
        .collect();
    Outcome { row, pairs, discarded: vec![], trouble: None }
}

fn report(outcomes: Vec<Outcome>) -> Report {
    let machine = Machine {
        processor: "a processor".to_owned(),
        processors: 2,
        memory_gib: 24,
        kernel: "Linux 6.1".to_owned(),
        file_system: "ext4".to_owned(),
    };
    Report {
        machine,
        date: "2026-01-31".to_owned(),
        versions: (Some("etcd Version: 3.7.1".to_owned()), "oxetcd 0.1.0".to_owned()),
        build: "1f".to_owned(),
        disturbed: Disturbed::Discard,
        quiet_median_micros: 95.0,
        window_seconds: 3.0,
        large: 1_000_000,
        outcomes,
    }
}

#[test]
fn missed_floor_fails_the_report_and_is_named() {
    let good = report(vec![outcome("put-64", 4000.0)]);
    assert!(good.passed(), "{}", good.summary());
    let bad = report(vec![outcome("put-64", 2000.0)]);
    assert!(!bad.passed(), "{}", bad.summary());
    assert!(bad.summary().contains("MISSED"), "{}", bad.summary());
    assert!(bad.summary().contains("put-64, op/s"), "{}", bad.summary());
}

#[test]
fn lost_write_fails_the_report_and_what_cannot_run_does_not() {
    let with = |trouble| {
        let mut one = outcome("put-64", 4000.0);
        one.pairs.clear();
        one.trouble = Some(trouble);
        report(vec![one])
    };
    assert!(!with(Trouble::Failed("a key is lost".to_owned())).passed());
    let not_here = with(Trouble::NotHere("no tracer".to_owned()));
    assert!(not_here.passed());
    assert!(not_here.summary().contains("not run: no tracer"), "{}", not_here.summary());
}

#[test]
fn page_and_document_show_every_claim_pair_and_discard() {
    let mut noisy = outcome("put-1", 4000.0);
    let pair = noisy.pairs.pop().unwrap();
    noisy.discarded.push((pair, "a sync took 4000 us".to_owned()));
    let report = report(vec![noisy, outcome("put-open", 1.0)]);
    let dir = std::env::temp_dir().join(format!("oxetcd-report-{}", std::process::id()));
    report.write(&dir).unwrap();
    let page = std::fs::read_to_string(dir.join("report.md")).unwrap();
    let document = std::fs::read_to_string(dir.join("report.json")).unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
    for wanted in ["put, 1 in flight | op/s", "discarded: a sync took 4000 us", "3. etcd cpu=40.0"]
    {
        assert!(page.contains(wanted), "{wanted} is not in {page}");
    }
    let document: serde_json::Value = serde_json::from_str(&document).unwrap();
    assert_eq!(document["claims"].as_array().unwrap().len(), 4, "{document}");
    assert_eq!(document["rows"][0]["pairs"].as_array().unwrap().len(), 4, "{document}");
    assert_eq!(document["rows"][0]["discarded"].as_array().unwrap().len(), 1, "{document}");
}

#[test]
fn busy_generator_is_named_beside_op_s_only() {
    let mut busy = outcome("put-64", 4000.0);
    for pair in &mut busy.pairs {
        pair.ours.insert("generator_share".to_owned(), 0.4);
    }
    let summary = report(vec![busy]).summary();
    let marked: Vec<_> = summary.lines().filter(|line| line.contains("generator-bound")).collect();
    assert!(matches!(marked[..], [line] if line.contains("op/s")), "{summary}");
}

#[test]
fn ours_alone_is_told_in_figures() {
    let mut alone = report(vec![outcome("put-64", 4000.0), outcome("idle", 0.0)]);
    alone.versions.0 = None;
    let summary = alone.summary();
    assert!(summary.contains("cpu=4.08 ops=4000"), "{summary}");
    assert!(!summary.contains("put-64, CPU"), "no ratio without etcd: {summary}");
    assert!(summary.contains("idle, RSS"), "{summary}");
}

#[test]
fn numbers_have_three_significant_digits() {
    assert_eq!([0.5, 9.87, 12.34, 123.4].map(number), ["0.50", "9.87", "12.3", "123"]);
}

#[test]
fn report_is_made_in_several_runs_of_one_build() {
    let dir = std::env::temp_dir().join(format!("oxetcd-joined-{}", std::process::id()));
    let ids = |report: &Report| report.outcomes.iter().map(|one| one.row.id).collect::<Vec<_>>();
    let mut first = outcome("txn", 4000.0);
    first.trouble = Some(Trouble::NotHere("no tracer".to_owned()));
    first.discarded.push((first.pairs[0].clone(), "noise".to_owned()));
    report(vec![first, outcome("put-64", 1.0)]).write(&dir).unwrap();
    let mut second = report(vec![outcome("put-64", 4000.0), outcome("put-1", 4000.0)]);
    assert!(second.join(&dir), "the same build and settings");
    assert_eq!(ids(&second), ["put-1", "put-64", "txn"], "in the order of the table");
    let [_, again, kept] = &second.outcomes[..] else { panic!("three rows") };
    assert_eq!(again.pairs[0].ours["ops"], 4000.0, "what was measured now counts");
    assert_eq!(kept.trouble, Some(Trouble::NotHere("no tracer".to_owned())));
    assert_eq!((kept.pairs.len(), &kept.discarded[0].1[..]), (5, "noise"));
    let mut other = Report { build: "20".to_owned(), ..report(vec![outcome("put-1", 1.0)]) };
    assert!(!other.join(&dir), "another build has a report of its own");
    std::fs::remove_dir_all(&dir).unwrap();
}

//! The tables of the docs: medians over the rounds.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::proxies::Proxy;
use crate::{Paced, Speed};

/// Bytes for people.
pub fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / 1_048_576.0
}

fn median<T>(runs: &[&T], read: impl Fn(&T) -> f64) -> f64 {
    let mut values: Vec<f64> = runs.iter().map(|run| read(run)).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn grouped<T, K: Ord>(runs: &[T], key: impl Fn(&T) -> K) -> BTreeMap<K, Vec<&T>> {
    let mut groups: BTreeMap<K, Vec<&T>> = BTreeMap::new();
    for run in runs {
        groups.entry(key(run)).or_default().push(run);
    }
    groups
}

/// Of a proxy, next to what cell-router needs: `1.5x` is half as much again.
fn against(value: f64, router: Option<f64>) -> String {
    router.map_or_else(String::new, |router| format!("{:.2}x", value / router))
}

/// All tables.
pub fn markdown(speeds: &[Speed], paces: &[Paced]) -> String {
    let mut text = full_speed(speeds);
    if !paces.is_empty() {
        text.push_str(&latency(paces));
        text.push_str(&flat_cost(paces));
    }
    text
}

fn full_speed(speeds: &[Speed]) -> String {
    let router = Proxy::CellRouter.name();
    let mut text = String::from(
        "As fast as answers come:\n\n\
         | traffic | threads | proxy | CPU us a request | next to cell-router | requests/s | RSS MiB | PSS MiB |\n\
         |---|---|---|---|---|---|---|---|\n",
    );
    let kinds = grouped(speeds, |speed| (speed.shape, speed.threads));
    for ((shape, threads), runs) in kinds {
        let runs: Vec<&Speed> = runs;
        let mut proxies: BTreeMap<&str, Vec<&Speed>> = BTreeMap::new();
        for run in runs {
            proxies.entry(run.proxy).or_default().push(run);
        }
        let ours = proxies
            .get(router)
            .map(|runs| median(runs, |run| run.cpu_us_per_request));
        for (proxy, runs) in &proxies {
            let cpu = median(runs, |run| run.cpu_us_per_request);
            let _ = writeln!(
                text,
                "| {} | {threads} | {proxy} | {cpu:.1} | {} | {:.0} | {:.1} | {:.1} |",
                shape.name(),
                against(cpu, ours),
                median(runs, |run| run.pushed.per_second),
                median(runs, |run| mebibytes(run.memory.resident)),
                median(runs, |run| mebibytes(run.memory.proportional)),
            );
        }
    }
    text
}

fn latency(paces: &[Paced]) -> String {
    let direct = Proxy::Direct.name();
    let mut text = String::from(
        "\nAt a fixed rate, from the moment a request was meant to be sent (added: next to no proxy):\n\n\
         | traffic | requests/s | proxy | p50 us | p99 us | p99.9 us | added p50 | added p99 | CPU us a request | failed |\n\
         |---|---|---|---|---|---|---|---|---|---|\n",
    );
    let kinds = grouped(paces, |paced| (paced.shape, paced.pace.per_second));
    for ((shape, rate), runs) in kinds {
        let mut proxies: BTreeMap<&str, Vec<&Paced>> = BTreeMap::new();
        for run in runs {
            if run.cells == crate::CELLS && run.asked == 1 {
                proxies.entry(run.proxy).or_default().push(run);
            }
        }
        let p50 = |runs: &Vec<&Paced>| median(runs, |run| run.latency.p50 as f64);
        let p99 = |runs: &Vec<&Paced>| median(runs, |run| run.latency.p99 as f64);
        let base = proxies.get(direct).map(|runs| (p50(runs), p99(runs)));
        for (proxy, runs) in &proxies {
            let added = base.filter(|_| *proxy != direct).map_or_else(
                || " | ".to_owned(),
                |(fifty, most)| format!("{:.0} | {:.0}", p50(runs) - fifty, p99(runs) - most),
            );
            let _ = writeln!(
                text,
                "| {} | {rate} | {proxy} | {:.0} | {:.0} | {:.0} | {added} | {:.1} | {:.0} |",
                shape.name(),
                p50(runs),
                p99(runs),
                median(runs, |run| run.latency.p999 as f64),
                median(runs, |run| run.cpu_us_per_request),
                median(runs, |run| run.latency.failed as f64),
            );
        }
    }
    text
}

fn flat_cost(paces: &[Paced]) -> String {
    let ours: Vec<&Paced> = paces
        .iter()
        .filter(|paced| paced.proxy == Proxy::CellRouter.name())
        .filter(|paced| {
            paced.shape == crate::Shape::Grpc && paced.pace.per_second == crate::RATES[1]
        })
        .collect();
    let mut text = String::from(
        "\ncell-router by cells in the table, keys drawn from 10 million, at a fixed rate:\n\n\
         | cells | cells asked | CPU us a request | p50 us | p99 us | RSS MiB |\n|---|---|---|---|---|---|\n",
    );
    let mut kinds: BTreeMap<(usize, usize), Vec<&Paced>> = BTreeMap::new();
    for run in ours {
        kinds.entry((run.asked, run.cells)).or_default().push(run);
    }
    for ((asked, cells), runs) in kinds {
        let _ = writeln!(
            text,
            "| {cells} | {asked} | {:.1} | {:.0} | {:.0} | {:.1} |",
            median(&runs, |run| run.cpu_us_per_request),
            median(&runs, |run| run.latency.p50 as f64),
            median(&runs, |run| run.latency.p99 as f64),
            median(&runs, |run| mebibytes(run.memory.resident)),
        );
    }
    text
}

//! What a process costs, by the kernel's account.

use std::fs;

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// A process.
#[derive(Clone, Copy, Debug)]
pub struct Process(pub u32);

/// The memory and time that a process has used so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Resident memory, in MiB.
    pub rss: f64,
    /// The most resident memory there ever was, in MiB.
    pub peak: f64,
    /// User and system time, in seconds.
    pub cpu: f64,
    /// How many threads there are.
    pub threads: u64,
}

impl Process {
    /// Its usage now.
    pub fn usage(self) -> Result<Usage> {
        let read = |file: &str| {
            let path = format!("/proc/{}/{file}", self.0);
            fs::read_to_string(&path).with_context(|| format!("read {path}"))
        };
        let status = read("status")?;
        let field = |name: &str| {
            status
                .lines()
                .find_map(|line| line.strip_prefix(name)?.split_whitespace().next())
                .and_then(|number| number.parse::<u64>().ok())
                .unwrap_or(0)
        };
        #[allow(clippy::cast_precision_loss, reason = "memory fits a double")]
        let mib = |name: &str| field(name) as f64 / 1024.0;
        // The name of the program, in brackets, may hold spaces; user and system time are the 12th and 13th after it.
        let stat = read("stat")?;
        let (_, after) = stat.rsplit_once(") ").context("understand /proc/*/stat")?;
        let ticks: f64 = after
            .split_whitespace()
            .skip(11)
            .take(2)
            .filter_map(|ticks| ticks.parse::<f64>().ok())
            .sum();
        Ok(Usage {
            rss: mib("VmRSS:"),
            peak: mib("VmHWM:"),
            cpu: ticks / 100.0,
            threads: field("Threads:"),
        })
    }
}

impl Usage {
    /// As it is written into the report.
    pub fn report(self) -> Value {
        json!({
            "rssMiB": round(self.rss), "peakRssMiB": round(self.peak),
            "cpuSeconds": round(self.cpu), "threads": self.threads,
        })
    }
}

/// Two digits after the point are more than these measurements have to say.
pub fn round(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

/// The quantile of a Prometheus histogram, summed over its labels: an upper bound, as its buckets are.
pub fn quantile(metrics: &str, name: &str, labels: &str, quantile: f64) -> Option<f64> {
    let prefix = format!("{name}_bucket{{");
    let mut buckets: Vec<(f64, f64)> = Vec::new();
    for line in metrics.lines().filter(|line| line.starts_with(&prefix)) {
        if !line.contains(labels) {
            continue;
        }
        let (series, count) = line.rsplit_once(' ')?;
        let bound = series.split("le=\"").nth(1)?.split('"').next()?;
        let bound = bound.parse().unwrap_or(f64::INFINITY);
        let count: f64 = count.parse().ok()?;
        match buckets.iter_mut().find(|(known, _)| *known == bound) {
            Some((_, sum)) => *sum += count,
            None => buckets.push((bound, count)),
        }
    }
    buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
    let rank = quantile * buckets.last()?.1;
    let (mut below, mut lower) = (0.0, 0.0);
    for (bound, count) in buckets {
        if count >= rank && count > below {
            if bound.is_infinite() {
                return Some(lower);
            }
            return Some(lower + (bound - lower) * (rank - below) / (count - below));
        }
        (below, lower) = (count, bound);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_something() -> Result<()> {
        let usage = Process(std::process::id()).usage()?;
        assert!(usage.rss > 0.0 && usage.peak >= usage.rss && usage.threads > 0);
        Ok(())
    }

    #[test]
    fn a_quantile_lies_inside_its_bucket() {
        let metrics = "h_bucket{c=\"cell\",le=\"1\"} 90\nh_bucket{c=\"cell\",le=\"2\"} 100\n\
                       h_bucket{c=\"cell\",le=\"+Inf\"} 100\nh_bucket{c=\"fleet\",le=\"1\"} 7\n";
        let p = |q| quantile(metrics, "h", "c=\"cell\"", q).unwrap_or_default();
        assert!((p(0.95) - 1.5).abs() < 1e-9, "{}", p(0.95));
        assert!(p(0.5) < 1.0);
        assert_eq!(quantile("", "h", "", 0.5), None);
    }
}

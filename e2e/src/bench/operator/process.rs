//! What a process costs, by the kernel's account.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// A process.
#[derive(Clone, Copy, Debug)]
pub struct Process(pub u32);

/// User and system time of a process, of its children that live, and of those that it has seen end, in seconds: what a
/// server with a process a connection has cost.
pub fn family_cpu(pid: u32) -> Result<f64> {
    let mut sum = Process(pid).ticks(4)?;
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    for child in children.unwrap_or_default().split_whitespace() {
        // One that has ended since is among the children that its parent has seen end.
        sum += child
            .parse()
            .map(Process)
            .map_or(Ok(0.0), |child: Process| child.ticks(2))
            .unwrap_or(0.0);
    }
    Ok(sum)
}

/// User and system time of the children of this process that have ended, in seconds.
pub fn ended_children_cpu() -> Result<f64> {
    let me = Process(std::process::id());
    Ok(me.ticks(4)? - me.ticks(2)?)
}

/// The memory and time that a process has used so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Resident memory, in MiB.
    pub rss: f64,
    /// The most resident memory there ever was, in MiB.
    pub peak: f64,
    /// User and system time, in seconds.
    pub cpu: f64,
    /// What of the resident memory is the process's own, and not its program's, in MiB.
    pub own: f64,
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
        Ok(Usage {
            rss: mib("VmRSS:"),
            peak: mib("VmHWM:"),
            own: mib("RssAnon:"),
            cpu: self.ticks(2)?,
            threads: field("Threads:"),
        })
    }

    /// The sum of so many times of `/proc/*/stat`, in seconds: its own user and system time, then those of children that
    /// have ended.
    fn ticks(self, fields: usize) -> Result<f64> {
        let path = format!("/proc/{}/stat", self.0);
        let stat = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        // The name of the program, in brackets, may hold spaces; the times begin at the 12th field after it.
        let (_, after) = stat.rsplit_once(") ").context("understand /proc/*/stat")?;
        let ticks: f64 = after
            .split_whitespace()
            .skip(11)
            .take(fields)
            .filter_map(|ticks| ticks.parse::<f64>().ok())
            .sum();
        Ok(ticks / 100.0)
    }
}

impl Usage {
    /// As it is written into the report.
    pub fn report(self) -> Value {
        json!({
            "rssMiB": round(self.rss), "peakRssMiB": round(self.peak), "ownRssMiB": round(self.own),
            "cpuSeconds": round(self.cpu), "threads": self.threads,
        })
    }
}

/// A count, to divide by.
#[allow(clippy::cast_precision_loss, reason = "counts are small")]
pub fn number(count: usize) -> f64 {
    count as f64
}

/// Two digits after the point are more than these measurements have to say.
pub fn round(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

/// The sum of a Prometheus counter over its series that hold `labels`, by the value of the label `by`.
pub fn counts(metrics: &str, name: &str, labels: &str, by: &str) -> BTreeMap<String, u64> {
    let prefix = format!("{name}{{");
    let mut sums = BTreeMap::new();
    for line in metrics.lines().filter(|line| line.starts_with(&prefix)) {
        let Some((series, count)) = line.rsplit_once(' ') else {
            continue;
        };
        let value = series
            .split([',', '{'])
            .find_map(|label| label.strip_prefix(by)?.strip_prefix("=\""))
            .and_then(|value| value.split('"').next());
        if let (Some(value), Ok(count)) = (value, count.parse::<f64>())
            && series.contains(labels)
        {
            #[allow(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a counter is a whole number"
            )]
            let count = count as u64;
            *sums.entry(value.to_owned()).or_insert(0) += count;
        }
    }
    sums
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
    fn the_time_of_children_that_have_ended_counts() -> Result<()> {
        let before = family_cpu(std::process::id())?;
        let burn = "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done";
        std::process::Command::new("sh")
            .args(["-c", burn])
            .status()?;
        assert!(family_cpu(std::process::id())? > before);
        Ok(())
    }

    #[test]
    fn counters_are_summed_by_a_label() {
        let metrics = "r_total{verb=\"GET\",code=\"200\"} 3\nr_total{code=\"404\",verb=\"GET\"} 2\n\
                       r_total{verb=\"LIST\",code=\"200\"} 1e+02\nr_totals{verb=\"GET\"} 9\n";
        let all = counts(metrics, "r_total", "", "verb");
        assert_eq!((all["GET"], all["LIST"]), (5, 100));
        assert_eq!(counts(metrics, "r_total", "404", "verb")["GET"], 2);
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

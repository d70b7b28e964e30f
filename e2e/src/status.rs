//! `cargo titan status`: what runs.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::cluster::part::Record;
use crate::cluster::{NODE_IP, PARTS, part};
use crate::{paths, shell};

/// Prints the parts and the cells; says whether all recorded parts run.
pub fn run() -> bool {
    let records: Vec<Record> = PARTS.iter().filter_map(|name| Record::load(name)).collect();
    if records.is_empty() {
        println!("No cluster runs here; `cargo titan up` starts one.");
        return false;
    }
    println!(
        "{:<26} {:>8} {:>10} {:>6}  HEALTH",
        "PART", "PID", "UPTIME", "PORT"
    );
    let mut well = true;
    for record in &records {
        let alive = record.alive();
        let port = record
            .port
            .map_or_else(|| "-".to_owned(), |port| port.to_string());
        let health = match (alive, record.port) {
            (false, _) => "dead: `cargo titan up` starts it again",
            (true, Some(port)) if !reachable(port) => "runs, port closed",
            (true, _) => "ok",
        };
        well &= health == "ok";
        let uptime = if alive {
            duration(now().saturating_sub(record.started))
        } else {
            "-".to_owned()
        };
        println!(
            "{:<26} {:>8} {uptime:>10} {port:>6}  {health}",
            record.name, record.pid
        );
    }
    println!(
        "\nlogs: {}\nkubeconfig: {}",
        paths::state("logs").display(),
        paths::kubeconfig().display()
    );
    match shell::output(&mut shell::kubectl(&["get", "cells", "-o", "wide"])) {
        Ok(cells) if cells.trim().is_empty() => println!("\nNo cells."),
        Ok(cells) => println!("\n{}", cells.trim_end()),
        Err(_) => println!("\nThe chart is not installed; `cargo titan up` does that."),
    }
    well
}

fn reachable(port: u16) -> bool {
    part::listens(NODE_IP, port) || part::listens("127.0.0.1", port)
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs())
}

fn duration(seconds: u64) -> String {
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds}s"),
        (0, minutes, seconds) => format!("{minutes}m{seconds:02}s"),
        (hours, minutes, _) => format!("{hours}h{minutes:02}m"),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn durations_are_short() {
        assert_eq!(["7s", "1m05s", "2h00m"], [7, 65, 7203].map(super::duration));
    }
}

//! Progress with elapsed times: spinners on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// How often a plain log says that a long step still runs.
const HEARTBEAT: Duration = Duration::from_secs(30);

/// The progress of one command.
pub struct Progress {
    started: Instant,
    bars: Option<MultiProgress>,
}

/// The progress of one step.
pub struct Step {
    bar: Option<ProgressBar>,
    detail: Mutex<String>,
}

impl Step {
    /// Says what the step is at; what was said last stays in its final line.
    pub fn say(&self, detail: impl Into<String>) {
        let detail = detail.into();
        if let Some(bar) = &self.bar {
            bar.set_message(detail.clone());
        }
        if let Ok(mut held) = self.detail.lock() {
            *held = detail;
        }
    }
}

impl Progress {
    /// Starts the clock.
    pub fn new() -> Self {
        let bars = std::io::stderr().is_terminal().then(MultiProgress::new);
        Self {
            started: Instant::now(),
            bars,
        }
    }

    /// Time since the start.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Prints a line above the spinners.
    pub fn line(&self, text: &str) {
        match &self.bars {
            Some(bars) => bars.suspend(|| println!("{text}")),
            None => println!("{text}"),
        }
    }

    /// Runs one step; several may run at once, each on its own thread.
    pub fn step<T>(&self, name: &str, work: impl FnOnce(&Step) -> Result<T>) -> Result<T> {
        let started = Instant::now();
        let bar = self.bars.as_ref().map(|bars| {
            let bar = bars.add(ProgressBar::new_spinner());
            if let Ok(style) =
                ProgressStyle::with_template("  {spinner} {elapsed:>4}  {prefix}  {msg:.dim}")
            {
                bar.set_style(style);
            }
            bar.set_prefix(name.to_owned());
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        let step = Step {
            bar,
            detail: Mutex::new(String::new()),
        };
        let result = thread::scope(|scope| {
            let (done, running) = mpsc::channel::<()>();
            if step.bar.is_none() {
                scope.spawn(|| self.heartbeat(name, started, running, &step));
            }
            let result = work(&step);
            drop(done);
            result
        });
        let detail = step
            .detail
            .lock()
            .map(|detail| detail.clone())
            .unwrap_or_default();
        let detail = if detail.is_empty() {
            detail
        } else {
            format!(" ({detail})")
        };
        if let Some(bar) = &step.bar {
            bar.finish_and_clear();
        }
        let mark = if result.is_ok() { "ok" } else { "FAILED" };
        self.line(&format!(
            "[{:6.1} s] {name}: {mark} in {:.1} s{detail}",
            self.elapsed().as_secs_f64(),
            started.elapsed().as_secs_f64()
        ));
        result.with_context(|| name.to_owned())
    }

    #[expect(
        clippy::needless_pass_by_value,
        reason = "the receiver moves to the heartbeat's thread"
    )]
    fn heartbeat(&self, name: &str, started: Instant, running: mpsc::Receiver<()>, step: &Step) {
        while running.recv_timeout(HEARTBEAT) == Err(RecvTimeoutError::Timeout) {
            let detail = step
                .detail
                .lock()
                .map(|detail| detail.clone())
                .unwrap_or_default();
            let (total, here) = (self.elapsed().as_secs_f64(), started.elapsed().as_secs());
            self.line(&format!(
                "[{total:6.1} s] {name}: running for {here} s {detail}"
            ));
        }
    }
}

/// Runs jobs on threads of their own, and returns the first error of any of them after all have ended.
pub fn together(jobs: Vec<Box<dyn FnOnce() -> Result<()> + Send + '_>>) -> Result<()> {
    thread::scope(|scope| {
        let threads: Vec<_> = jobs.into_iter().map(|job| scope.spawn(job)).collect();
        let mut outcome = Ok(());
        for thread in threads {
            let result = thread
                .join()
                .unwrap_or_else(|_| Err(anyhow::anyhow!("a step panicked")));
            if outcome.is_ok() {
                outcome = result;
            }
        }
        outcome
    })
}

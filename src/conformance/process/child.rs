//! A running adapter: its pipes, and its end.
//!
//! No pipe is read or written by the thread that judges, so no adapter can hold it up: one thread writes to it, one
//! reads its answers, one its stderr. What they pass on is bounded, so no adapter can fill the memory either.

use std::collections::{BTreeSet, VecDeque};
use std::io::{self, BufReader, Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::lines::{Line, Lines};
use super::{LONGEST_LINE, shown};

/// How many questions may wait to be written, and how many lines to be read.
const WAITING: usize = 4;
/// How often a process that says nothing is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// How many lines of stderr are kept.
const LAST_WORDS: usize = 3;
/// How long a process that closed a pipe may take to end, so that its exit status is known.
const ENDING: Duration = Duration::from_millis(500);
/// How long a killed process may take to end.
const DYING: Duration = Duration::from_secs(5);

/// The process groups that run, by the number of their leader, so that a signal that ends the judge ends them too.
static RUNNING: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

/// What comes of waiting for a line.
#[derive(Debug)]
pub(super) enum Heard {
    /// A line.
    Line(Line),
    /// Nothing more will come, or no question can be put any more.
    Gone(&'static str),
    /// Nothing, in the time given.
    Silence,
}

/// A running adapter.
#[derive(Debug)]
pub(super) struct Running {
    child: Child,
    /// `None` once its input is closed.
    questions: Option<SyncSender<Vec<u8>>>,
    heard: Receiver<Heard>,
    last_words: Arc<Mutex<VecDeque<String>>>,
    stderr_ended: Receiver<()>,
    /// Once it was waited for, its number may be another's.
    is_over: bool,
}

impl Running {
    /// Starts a program with its arguments.
    pub(super) fn start(program: &str, arguments: &[String]) -> io::Result<Self> {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Python holds back what it prints into a pipe; an answer that is held back looks like a hang.
        command.env("PYTHONUNBUFFERED", "1");
        group::lead(&mut command);
        let mut child = {
            let mut running = locked(&RUNNING);
            let child = command.spawn()?;
            running.insert(child.id());
            child
        };
        let (heard_by, heard) = sync_channel(WAITING);
        let (questions, to_write) = sync_channel(WAITING);
        let (ended, stderr_ended) = sync_channel(1);
        let last_words = Arc::new(Mutex::new(VecDeque::new()));
        // A thread that cannot be started drops its end of the channel, which reads as an adapter that is gone.
        if let Some(stdin) = child.stdin.take() {
            let heard_by = heard_by.clone();
            spawn(move || write(stdin, &to_write, &heard_by));
        }
        if let Some(stdout) = child.stdout.take() {
            spawn(move || read(stdout, &heard_by));
        }
        if let Some(stderr) = child.stderr.take() {
            let last_words = Arc::clone(&last_words);
            spawn(move || {
                remember(stderr, &last_words);
                drop(ended);
            });
        }
        Ok(Self { child, questions: Some(questions), heard, last_words, stderr_ended, is_over: false })
    }

    /// Hands a line over to be written; false if earlier ones still wait, so that this one was dropped.
    pub(super) fn say(&self, mut line: String) -> bool {
        line.push('\n');
        self.questions.as_ref().is_some_and(|questions| questions.try_send(line.into_bytes()).is_ok())
    }

    /// The next line, if one comes until then.
    pub(super) fn hear(&mut self, until: Instant) -> Heard {
        let mut ended = None;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Heard::Silence; // whatever still comes: a flood must not outlast the time given
            }
            match self.heard.recv_timeout(left.min(LOOK)) {
                Ok(heard) => return heard,
                Err(RecvTimeoutError::Disconnected) => return Heard::Gone("closed its output"),
                Err(RecvTimeoutError::Timeout) => {}
            }
            // A process that it started may hold the pipe open for ever.
            if group::has_ended(&mut self.child) && ended.get_or_insert_with(Instant::now).elapsed() > ENDING
            {
                return Heard::Gone("left its pipes to another process");
            }
        }
    }

    /// What became of it, in words, after it closed a pipe: how it ended, or else what it did, and its last words.
    pub(super) fn obituary(&mut self, what: &str, when: &str) -> String {
        let has_ended = self.ends_within(ENDING);
        let status = self.kill();
        let what = match status {
            Some(status) if has_ended => format!("ended ({status})"),
            _ => what.to_owned(),
        };
        // Its last words may still be on their way.
        let _ = self.stderr_ended.recv_timeout(ENDING);
        let last_words = locked(&self.last_words);
        let last_words = last_words.iter().map(String::as_str).collect::<Vec<_>>().join(" | ");
        let before = if last_words.is_empty() { "" } else { "; the end of its stderr: " };
        format!("the adapter {what}{when}{before}{last_words}")
    }

    /// Lets it end by itself, for so long.
    pub(super) fn dismiss(&mut self, patience: Duration) {
        self.questions = None;
        self.ends_within(patience);
        self.kill();
    }

    fn ends_within(&mut self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        let mut pause = Duration::from_millis(1);
        loop {
            if group::has_ended(&mut self.child) {
                return true;
            }
            if Instant::now() >= until {
                return false;
            }
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// Ends it and every process that it started, and leaves no zombie.
    fn kill(&mut self) -> Option<ExitStatus> {
        if self.is_over {
            return None;
        }
        self.is_over = true;
        // Before it is waited for, as long as its number is its own.
        group::kill(self.child.id());
        let _ = self.child.kill();
        // A process that waits for a device may outlive even this for a while.
        let status = if self.ends_within(DYING) { self.child.wait().ok() } else { None };
        locked(&RUNNING).remove(&self.child.id());
        status
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// From now on, Ctrl-C and a polite request to end also end every adapter: each is in a process group of its own, which
/// the terminal's Ctrl-C does not reach.
pub fn end_adapters_on_signals() {
    group::end_on_signals();
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn spawn(work: impl FnOnce() + Send + 'static) {
    let _ = thread::Builder::new().spawn(work);
}

fn write(mut stdin: impl Write, questions: &Receiver<Vec<u8>>, heard_by: &SyncSender<Heard>) {
    for question in questions {
        if stdin.write_all(&question).and_then(|()| stdin.flush()).is_err() {
            let _ = heard_by.send(Heard::Gone("closed its input"));
            return;
        }
    }
}

fn read(stdout: impl Read, heard_by: &SyncSender<Heard>) {
    for line in Lines::new(BufReader::with_capacity(1 << 16, stdout), LONGEST_LINE) {
        if heard_by.send(Heard::Line(line)).is_err() {
            return; // nobody listens any more
        }
    }
    let _ = heard_by.send(Heard::Gone("closed its output"));
}

fn remember(stderr: impl Read, last_words: &Mutex<VecDeque<String>>) {
    for line in Lines::new(BufReader::new(stderr), 1 << 16) {
        let (Line::Whole(line) | Line::TooLong(line) | Line::Cut(line)) = line;
        let mut last_words = locked(last_words);
        last_words.push_back(shown(&line));
        if last_words.len() > LAST_WORDS {
            last_words.pop_front();
        }
    }
}

/// The adapter and all that it starts are one process group, so that they can be ended together.
#[cfg(unix)]
mod group {
    use std::os::unix::process::CommandExt;
    use std::process::{Child, Command};

    use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
    use signal_hook::consts::{SIGINT, SIGTERM};
    use signal_hook::iterator::Signals;

    use super::{RUNNING, locked, spawn};

    pub(super) fn lead(command: &mut Command) {
        command.process_group(0);
    }

    pub(super) fn kill(leader: u32) {
        if let Some(leader) = pid(leader) {
            let _ = kill_process_group(leader, Signal::KILL);
        }
    }

    /// Whether the process has ended; it is not waited for, so its number stays its own.
    #[expect(clippy::needless_pass_by_ref_mut, reason = "elsewhere it cannot be told without")]
    pub(super) fn has_ended(child: &mut Child) -> bool {
        let peek = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        pid(child.id()).is_none_or(|pid| !matches!(waitid(WaitId::Pid(pid), peek), Ok(None)))
    }

    pub(super) fn end_on_signals() {
        let Ok(mut signals) = Signals::new([SIGINT, SIGTERM]) else { return };
        spawn(move || {
            for signal in signals.forever() {
                // Held to the end, so that no adapter is started meanwhile.
                let running = locked(&RUNNING);
                running.iter().copied().for_each(kill);
                let _ = signal_hook::low_level::emulate_default_handler(signal);
            }
        });
    }

    fn pid(number: u32) -> Option<Pid> {
        Pid::from_raw(i32::try_from(number).ok()?)
    }
}

#[cfg(not(unix))]
mod group {
    use std::process::{Child, Command};

    pub(super) fn lead(_command: &mut Command) {}

    // Closing its pipes must do.
    pub(super) fn kill(_leader: u32) {}

    pub(super) fn has_ended(child: &mut Child) -> bool {
        !matches!(child.try_wait(), Ok(None))
    }

    pub(super) fn end_on_signals() {}
}

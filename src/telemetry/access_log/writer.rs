//! Writer: a buffer that requests append to, and a thread that empties it.

use std::{io, sync::Arc, thread, time::Duration};

use parking_lot::{Condvar, Mutex};

use super::super::Metrics;

/// Bytes that wait to be written at most: about a thousand lines.
const PENDING_MAX: usize = 512 * 1_024;

/// Bytes that are worth a system call of their own.
const BATCH: usize = 32 * 1_024;

/// How long the first line of a batch waits for others: a thread woken for each line would
/// cost a busy pod two context switches a request.
const BATCH_DELAY: Duration = Duration::from_millis(5);

/// Lines on their way to the writer.
#[derive(Debug)]
pub(super) struct Queue {
    shared: Arc<Shared>,
    metrics: Metrics,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Told to the writer: there is a first line, a batch, or no log any more.
    work: Condvar,
    /// Told to who flushes: everything is written.
    done: Condvar,
}

#[derive(Debug, Default)]
struct State {
    pending: Vec<u8>,
    /// The writer holds lines that are not written.
    writing: bool,
    /// Somebody waits for what is pending to be written.
    hurry: bool,
    closed: bool,
}

impl Queue {
    /// Starts the thread.
    pub(super) fn start(
        mut out: impl io::Write + Send + 'static,
        metrics: Metrics,
    ) -> io::Result<Arc<Self>> {
        let shared = Arc::new(Shared::default());
        let for_writer = Arc::clone(&shared);
        let run = move || for_writer.write_all(&mut out);
        thread::Builder::new().name("access-log".into()).spawn(run)?;
        Ok(Arc::new(Self { shared, metrics }))
    }

    /// Appends the line that `write` appends to a buffer; drops it when there is no room.
    pub(super) fn push(&self, write: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.shared.state.lock();
        let before = state.pending.len();
        if before < PENDING_MAX {
            write(&mut state.pending);
        }
        let after = state.pending.len();
        if PENDING_MAX < after || before == after {
            state.pending.truncate(before);
            drop(state);
            return self.metrics.access_log_dropped();
        }
        drop(state);
        if before == 0 || (before < BATCH && BATCH <= after) {
            self.shared.work.notify_one();
        }
    }

    /// Waits until all is written, `most` at the longest.
    pub(super) fn flush(&self, most: Duration) {
        let mut state = self.shared.state.lock();
        state.hurry = true;
        self.shared.work.notify_one();
        let busy = |it: &mut State| it.writing || !it.pending.is_empty();
        let _in_time = !self.shared.done.wait_while_for(&mut state, busy, most).timed_out();
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.shared.state.lock().closed = true;
        self.shared.work.notify_one();
    }
}

impl Shared {
    /// Writes what is pending until the log is closed and nothing is.
    fn write_all(&self, out: &mut impl io::Write) {
        let mut batch = Vec::new();
        while self.take(&mut batch) {
            // Nobody can be told that standard output is gone but by standard error; and the
            // log goes on, since it may be back.
            if let Err(error) = out.write_all(&batch).and_then(|()| out.flush()) {
                tracing::debug!(%error, "access log cannot be written");
            }
            batch.clear();
            // One burst must not be paid for in memory from then on.
            batch.shrink_to(2 * BATCH);
        }
    }

    /// Waits for a batch and takes it; `false` when there will be none.
    fn take(&self, batch: &mut Vec<u8>) -> bool {
        let mut state = self.state.lock();
        state.writing = false;
        if state.pending.is_empty() {
            state.hurry = false;
            self.done.notify_all();
        }
        self.work.wait_while(&mut state, |it| it.pending.is_empty() && !it.closed);
        let small = |it: &mut State| it.pending.len() < BATCH && !it.closed && !it.hurry;
        let _full = !self.work.wait_while_for(&mut state, small, BATCH_DELAY).timed_out();
        std::mem::swap(&mut state.pending, batch);
        state.writing = !batch.is_empty();
        state.writing
    }
}

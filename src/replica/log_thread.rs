//! The log thread: makes entries durable while the replica thread goes on.
//!
//! Decides nothing. A member that is alone needs no such thread: nothing could be done while the
//! disk works, and two hand-overs per write are saved; then it sleeps, and the writer is with the
//! replica thread, which hands it over for good when a second member comes. Started by `boot`; fed
//! by the replica thread.

use crate::base::queue::{Drained, Receiver, Sender};

use super::{
    Input,
    log_writer::{LogError, LogInput, LogWriter},
};

/// The log while somebody else writes it.
#[derive(Debug)]
pub(super) enum LogHandOver {
    /// From now on the log thread writes.
    TakeOver(Box<LogWriter>),
    /// Work, once the thread has the writer.
    Work(Box<LogInput>),
}

/// The body of the log thread.
#[derive(Debug)]
pub struct LogThread {
    pub(super) inputs: Receiver<LogHandOver>,
    pub(super) reports: Sender<Input>,
}

impl LogThread {
    /// Runs until the replica thread is gone.
    ///
    /// # Errors
    /// - [`LogError`] on the first failed write or sync; the member must stop.
    pub fn run(mut self) -> Result<(), LogError> {
        let mut writer = None;
        let (mut arrived, mut work) = (Vec::new(), Vec::new());
        while self.inputs.drain(&mut arrived, None) != Drained::Closed {
            for input in arrived.drain(..) {
                match input {
                    LogHandOver::TakeOver(taken) => writer = Some(taken),
                    LogHandOver::Work(input) => work.push(*input),
                }
            }
            let writer = writer.as_mut().expect("the writer comes before the first work");
            // Bounded by the batches that the replica has handed out. A replica that is gone
            // needs no report.
            let report = |input| drop(self.reports.send_reserved(input));
            writer.carry_out(&mut work, report)?;
        }
        Ok(())
    }
}

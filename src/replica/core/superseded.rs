//! Messages that a later one makes needless.
//!
//! Decides which of the messages that leave at one time need not be sent. Called by the core for
//! each batch of messages.

use proto::raftpb::{Message, MessageType};

/// Takes out messages that only tell a commit position which a later message to the same member
/// tells as well, and heartbeats before the last one, whose answer confirms every read. Any message
/// may be lost on its way, so none is missed.
pub(super) fn drop_superseded(messages: &mut Vec<Message>) {
    let append = Some(MessageType::MsgApp.into());
    let heartbeat = Some(MessageType::MsgHeartbeat.into());
    let mut later: Vec<(Option<u64>, Option<u64>)> = Vec::new();
    let mut alive: Vec<Option<u64>> = Vec::new();
    let mut kept = Vec::with_capacity(messages.len());
    for message in messages.drain(..).rev() {
        if message.r#type == append {
            let (to, commit) = (message.to, message.commit);
            let is_told = later.iter().any(|(other, told)| *other == to && commit <= *told);
            if message.entries.is_empty() && is_told {
                continue;
            }
            later.push((to, commit));
        } else if message.r#type == heartbeat {
            if alive.contains(&message.to) {
                continue;
            }
            alive.push(message.to);
        }
        kept.push(message);
    }
    kept.reverse();
    *messages = kept;
}

#[cfg(test)]
mod tests {
    use proto::raftpb::Entry;

    use super::*;

    #[test]
    fn only_a_message_that_tells_nothing_but_an_older_commit_is_left_out() {
        let append = |to: u64, commit: u64, entries: usize| Message {
            r#type: Some(MessageType::MsgApp.into()),
            to: Some(to),
            commit: Some(commit),
            entries: vec![Entry::default(); entries],
            ..Message::default()
        };
        let heartbeat = Message {
            r#type: Some(MessageType::MsgHeartbeat.into()),
            to: Some(2),
            ..append(2, 0, 0)
        };
        let mut messages = vec![
            append(2, 5, 0),
            append(3, 5, 0),
            append(2, 4, 1),
            heartbeat.clone(),
            append(2, 5, 2),
            heartbeat,
            append(3, 4, 1),
        ];
        let mut expected = messages.clone();
        expected.remove(3);
        expected.remove(0);
        drop_superseded(&mut messages);
        assert_eq!(messages, expected);
    }
}

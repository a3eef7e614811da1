//! Alarms: what an operator must see and clear.
//!
//! Decides which alarms are active and mirrors them into the table `alarm`. What an active alarm
//! forbids is decided in `gate`. Owned by the machine; readers get copies.
//!
//! Source: etcd `server/etcdserver/api/v3alarm/alarms.go`, `server/storage/schema/alarm.go`.

use std::{collections::BTreeSet, sync::LazyLock};

use bytes::Bytes;
use prost::{DecodeError, Message};
use proto::etcdserverpb::{AlarmMember, AlarmRequest, AlarmType, alarm_request::AlarmAction};

use crate::{
    base::metrics::{self, IntGaugeVec},
    model::MemberId,
    storage::{Table, TableWrite},
};

static ALARMS: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    metrics::gauges(
        "etcd_debugging_server_alarms",
        "Alarms for every member in cluster. 1 for 'server_id' label with current ID. \
         2 for 'alarm_type' label with type of this alarm",
        &["server_id", "alarm_type"],
    )
});

/// Makes the series exist from the start.
pub(super) fn register_metrics() {
    LazyLock::force(&ALARMS);
}

/// The active alarms. A kind is a number: a log may hold kinds that only newer versions know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Alarms(BTreeSet<(i32, MemberId)>);

impl Alarms {
    /// Takes in one stored alarm.
    ///
    /// # Errors
    /// - [`DecodeError`] if `key` is not one.
    pub(super) fn restore(&mut self, key: &[u8]) -> Result<(), DecodeError> {
        let stored = AlarmMember::decode(key)?;
        self.0.insert((stored.alarm, MemberId(stored.member_id)));
        Ok(())
    }

    /// The active alarms of one kind, or all for `AlarmType::None`, by kind and member.
    #[must_use]
    pub fn of(&self, kind: AlarmType) -> Vec<AlarmMember> {
        self.listed(kind.into())
    }

    /// Whether an alarm of this kind is active for any member.
    #[must_use]
    pub fn is_active(&self, kind: AlarmType) -> bool {
        let kind = i32::from(kind);
        self.0.range((kind, MemberId(0))..=(kind, MemberId(u64::MAX))).next().is_some()
    }

    /// Carries out a committed request and returns the alarms it is about. An action that nobody
    /// knows does nothing.
    pub(super) fn apply(
        &mut self,
        request: &AlarmRequest,
        writes: &mut Vec<TableWrite>,
    ) -> Vec<AlarmMember> {
        let alarm = AlarmMember { member_id: request.member_id, alarm: request.alarm };
        match AlarmAction::try_from(request.action) {
            Ok(AlarmAction::Get) => self.listed(request.alarm),
            Ok(AlarmAction::Activate) => self.activate(alarm, writes),
            Ok(AlarmAction::Deactivate) => self.deactivate(alarm, writes),
            Err(_) => Vec::new(),
        }
    }

    fn listed(&self, kind: i32) -> Vec<AlarmMember> {
        let all = kind == i32::from(AlarmType::None);
        let wanted = self.0.iter().filter(|(alarm, _)| all || *alarm == kind);
        wanted.map(|(alarm, member)| AlarmMember { member_id: member.0, alarm: *alarm }).collect()
    }

    fn activate(&mut self, alarm: AlarmMember, writes: &mut Vec<TableWrite>) -> Vec<AlarmMember> {
        if alarm.alarm == i32::from(AlarmType::None) {
            return Vec::new();
        }
        if self.0.insert((alarm.alarm, MemberId(alarm.member_id))) {
            writes.push(write(&alarm, Some(Bytes::new())));
            show(&alarm, 1);
        }
        vec![alarm]
    }

    fn deactivate(&mut self, alarm: AlarmMember, writes: &mut Vec<TableWrite>) -> Vec<AlarmMember> {
        if !self.0.remove(&(alarm.alarm, MemberId(alarm.member_id))) {
            return Vec::new();
        }
        writes.push(write(&alarm, None));
        show(&alarm, 0);
        vec![alarm]
    }
}

fn write(alarm: &AlarmMember, value: Option<Bytes>) -> TableWrite {
    let key = Bytes::from(alarm.encode_to_vec());
    assert!(!key.is_empty(), "no alarm of kind NONE becomes active");
    TableWrite { table: Table::Alarm, key, value }
}

fn show(alarm: &AlarmMember, value: i64) {
    let kind = AlarmType::try_from(alarm.alarm)
        .map_or_else(|_| alarm.alarm.to_string(), |kind| kind.as_str_name().to_owned());
    let member = MemberId(alarm.member_id).to_string();
    ALARMS.with_label_values(&[member.as_str(), kind.as_str()]).set(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(action: i32, member_id: u64, alarm: i32) -> AlarmRequest {
        AlarmRequest { action, member_id, alarm }
    }

    #[test]
    fn alarms_come_back_from_their_table_even_of_unknown_kinds() {
        let mut alarms = Alarms::default();
        let mut writes = Vec::new();
        for (member, kind) in [(0, 1), (7, 2), (7, 9), (8, 1)] {
            assert_eq!(alarms.apply(&request(1, member, kind), &mut writes).len(), 1);
        }
        assert_eq!(alarms.apply(&request(2, 8, 1), &mut writes).len(), 1);
        let mut back = Alarms::default();
        for write in &writes[..3] {
            back.restore(&write.key).expect("own bytes");
        }
        assert_eq!(back, alarms);
        assert_eq!(writes[4].value, None, "a cleared alarm stays stored");
    }

    #[test]
    fn requests_that_change_nothing_answer_without_alarms() {
        let mut alarms = Alarms::default();
        let mut writes = Vec::new();
        for nothing in [request(1, 7, 0), request(2, 7, 0), request(2, 7, 1), request(77, 7, 1)] {
            assert_eq!(alarms.apply(&nothing, &mut writes), []);
        }
        assert_eq!((alarms, writes), (Alarms::default(), vec![]));
    }
}

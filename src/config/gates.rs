//! Feature gates: switches for features that are not settled.
//!
//! Decides their names, stages and defaults, and reads `--feature-gates`. Used by the flags, by
//! everyone who asks whether a gate is open, and by `http` for the metric of them all.
//!
//! Source: etcd `server/features/etcd_features.go`, `pkg/featuregate`.

use std::{collections::BTreeMap, sync::LazyLock};

use super::syntax::parse_bool;
use crate::base::metrics::{IntGaugeVec, gauges};

/// How settled a gate's feature is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Off unless asked for.
    Alpha,
    /// On unless refused.
    Beta,
}

/// One switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Gate {
    /// Sets every alpha gate that is not set by name.
    AllAlpha,
    /// Sets every beta gate that is not set by name.
    AllBeta,
    /// The leader compares the hashes of compactions.
    CompactHashCheck,
    /// Lease renewal does not wait for the applied index.
    FastLeaseKeepAlive,
    /// Hashes are compared with the peers before serving.
    InitialCorruptCheck,
    /// The leader shares remaining lease times with the other members.
    LeaseCheckpoint,
    /// Remaining lease times survive a restart.
    LeaseCheckpointPersist,
    /// Revocations of leases overtake other requests under load.
    PriorityRequest,
    /// Peers are dialled from an advertised address.
    SetMemberLocalAddr,
    /// Health turns bad while a member defragments.
    StopGRPCServiceOnDefrag,
    /// The read part of a write transaction uses the shared buffer.
    TxnModeWriteWithSharedBuffer,
}

/// Every gate with its name and stage. The stage is the default: beta is on.
pub const GATES: [(Gate, &str, Stage); 11] = [
    (Gate::AllAlpha, "AllAlpha", Stage::Alpha),
    (Gate::AllBeta, "AllBeta", Stage::Beta),
    (Gate::CompactHashCheck, "CompactHashCheck", Stage::Alpha),
    (Gate::FastLeaseKeepAlive, "FastLeaseKeepAlive", Stage::Beta),
    (Gate::InitialCorruptCheck, "InitialCorruptCheck", Stage::Alpha),
    (Gate::LeaseCheckpoint, "LeaseCheckpoint", Stage::Alpha),
    (Gate::LeaseCheckpointPersist, "LeaseCheckpointPersist", Stage::Alpha),
    (Gate::PriorityRequest, "PriorityRequest", Stage::Alpha),
    (Gate::SetMemberLocalAddr, "SetMemberLocalAddr", Stage::Alpha),
    (Gate::StopGRPCServiceOnDefrag, "StopGRPCServiceOnDefrag", Stage::Alpha),
    (Gate::TxnModeWriteWithSharedBuffer, "TxnModeWriteWithSharedBuffer", Stage::Beta),
];

static ENABLED: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    gauges(
        "etcd_server_feature_enabled",
        "Whether or not a feature is enabled. 1 is enabled, 0 is not.",
        &["name", "stage"],
    )
});

/// The gates that were set; the others have their default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FeatureGates {
    set: BTreeMap<Gate, bool>,
}

impl FeatureGates {
    /// Whether a gate is open.
    #[must_use]
    pub fn enabled(&self, gate: Gate) -> bool {
        self.set.get(&gate).copied().unwrap_or_else(|| default_of(gate))
    }

    /// Every gate with its name, stage and whether it is open.
    pub fn all(&self) -> impl Iterator<Item = (&'static str, Stage, bool)> + '_ {
        GATES.iter().map(|(gate, name, stage)| (*name, *stage, self.enabled(*gate)))
    }

    /// Tells the metrics which gates are open.
    pub fn register_metrics(&self) {
        for (name, stage, enabled) in self.all() {
            let stage = match stage {
                Stage::Alpha => "ALPHA",
                Stage::Beta => "BETA",
            };
            ENABLED.with_label_values(&[name, stage]).set(i64::from(enabled));
        }
    }

    /// The gates that were set, as `name=true,name=false`, sorted by name.
    #[must_use]
    pub fn shown(&self) -> String {
        let pairs = self.set.iter().map(|(gate, on)| format!("{}={on}", name_of(*gate)));
        pairs.collect::<Vec<_>>().join(",")
    }

    /// Sets gates from `name=bool,name=bool`; what was set before stays.
    pub(super) fn set(&mut self, text: &str) -> Result<(), String> {
        let mut named = BTreeMap::new();
        for pair in text.split(',').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair
                .split_once('=')
                .map_or((pair.trim(), None), |(name, value)| (name.trim(), Some(value.trim())));
            let value = value.ok_or_else(|| format!("missing bool value for {name}"))?;
            let on = parse_bool(value).ok_or_else(|| {
                let reason = format!("strconv.ParseBool: parsing {value:?}: invalid syntax");
                format!("invalid value of {name}={value}, err: {reason}")
            })?;
            named.insert(name, on);
        }
        let mut set = self.set.clone();
        for (name, on) in named {
            let known = GATES.iter().find(|(_, known, _)| *known == name);
            let (gate, ..) = known.ok_or_else(|| format!("unrecognized feature gate: {name}"))?;
            set.insert(*gate, on);
        }
        fill(&mut set, Gate::AllAlpha, Stage::Alpha);
        fill(&mut set, Gate::AllBeta, Stage::Beta);
        self.set = set;
        Ok(())
    }
}

/// Sets the unset gates of a stage if the stage itself was set.
fn fill(set: &mut BTreeMap<Gate, bool>, all: Gate, stage: Stage) {
    let Some(on) = set.get(&all).copied() else { return };
    for (gate, _, _) in GATES.iter().filter(|(gate, _, of)| *of == stage && !is_collective(*gate)) {
        set.entry(*gate).or_insert(on);
    }
}

const fn is_collective(gate: Gate) -> bool {
    matches!(gate, Gate::AllAlpha | Gate::AllBeta)
}

fn entry(gate: Gate) -> (&'static str, Stage) {
    let found = GATES.iter().find(|(listed, ..)| *listed == gate);
    found.map(|(_, name, stage)| (*name, *stage)).expect("GATES lists every gate")
}

fn name_of(gate: Gate) -> &'static str {
    entry(gate).0
}

fn default_of(gate: Gate) -> bool {
    !is_collective(gate) && entry(gate).1 == Stage::Beta
}

#[cfg(test)]
mod tests {
    use super::{FeatureGates, Gate};

    #[test]
    fn unset_gates_follow_their_stage() {
        let mut gates = FeatureGates::default();
        assert!(gates.enabled(Gate::FastLeaseKeepAlive), "beta gates are open by default");
        assert!(!gates.enabled(Gate::LeaseCheckpoint), "alpha gates are shut by default");
        assert!(!gates.enabled(Gate::AllBeta), "the collective gates are shut by default");
        gates.set("AllAlpha=true,InitialCorruptCheck=false").unwrap();
        assert!(gates.enabled(Gate::LeaseCheckpoint), "AllAlpha opens what was not named");
        assert!(!gates.enabled(Gate::InitialCorruptCheck), "AllAlpha leaves what was named");
    }

    #[test]
    fn bad_gates_get_etcd_s_sentences() {
        for (text, sentence) in [
            ("Nope=true", "unrecognized feature gate: Nope"),
            ("LeaseCheckpoint", "missing bool value for LeaseCheckpoint"),
            (
                "LeaseCheckpoint=yes",
                "invalid value of LeaseCheckpoint=yes, err: strconv.ParseBool: parsing \"yes\": \
                 invalid syntax",
            ),
        ] {
            let refused = FeatureGates::default().set(text);
            assert_eq!(refused, Err(sentence.to_owned()), "{text} must be refused");
        }
    }

    #[test]
    fn shown_gates_are_those_that_were_set_in_order() {
        let mut gates = FeatureGates::default();
        gates.set("SetMemberLocalAddr=1, CompactHashCheck=false,").unwrap();
        assert_eq!(gates.shown(), "CompactHashCheck=false,SetMemberLocalAddr=true", "as logged");
    }
}

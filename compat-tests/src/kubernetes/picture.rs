//! What a watch has told, kept as a controller keeps it: a list, then every event after it.
//!
//! Decides what to do at the end of a stream: go on from the last version that was seen, or list again
//! when that is gone. Written by one task, read by the drill.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context, ensure};
use http::StatusCode;
use http_body_util::BodyExt as _;
use serde_json::Value;
use tokio::time::sleep;

use super::client::{Caller, Endpoint, PAUSE, Request, version};

/// Objects and their versions, by namespace and name.
pub(super) type Objects = BTreeMap<String, u64>;

/// The picture, and how it came about.
#[derive(Clone, Debug, Default)]
pub(super) struct Picture {
    pub(super) objects: Objects,
    pub(super) events: u64,
    /// How often everything was listed.
    pub(super) lists: u64,
    /// How often the version to go on from was gone.
    pub(super) gone: u64,
    /// How often a stream ended.
    pub(super) ends: u64,
}

/// A picture that a task keeps.
#[derive(Clone, Debug, Default)]
pub(super) struct Shared(Arc<Mutex<Picture>>);

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, Picture> {
        // Nothing panics half-way through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the picture of everything at `path` until it is dropped.
    pub(super) async fn keep(self, endpoint: Endpoint, path: &'static str) {
        let mut caller = Caller::new(endpoint);
        let mut from = None;
        loop {
            // A failure is as good as the end of a stream.
            if self.follow(&mut caller, path, &mut from).await.is_err() {
                sleep(PAUSE).await;
            }
            self.lock().ends += 1;
        }
    }

    /// Follows one stream to its end, after a list if there is nothing to go on from.
    async fn follow(
        &self,
        caller: &mut Caller,
        path: &str,
        from: &mut Option<u64>,
    ) -> anyhow::Result<()> {
        let start = match *from {
            Some(version) => version,
            None => *from.insert(self.list(caller, path).await?),
        };
        let request = format!("{path}?watch=1&allowWatchBookmarks=true&resourceVersion={start}");
        let answer = caller.open(&Request::get(request)).await?;
        if answer.status() == StatusCode::GONE {
            self.lock().gone += 1;
            *from = None;
            return Ok(());
        }
        ensure!(answer.status().is_success(), "a watch was answered with {}", answer.status());
        let (mut body, mut input) = (answer.into_body(), Vec::new());
        while let Some(frame) = body.frame().await {
            let Ok(bytes) = frame?.into_data() else { continue };
            input.extend_from_slice(&bytes);
            while let Some(end) = input.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = input.drain(..=end).collect();
                self.take(&serde_json::from_slice(&line)?, from)?;
                if from.is_none() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    async fn list(&self, caller: &mut Caller, path: &str) -> anyhow::Result<u64> {
        let (items, list_version) = caller.list(path).await?;
        let objects = objects(&items)?;
        let mut picture = self.lock();
        picture.lists += 1;
        picture.objects = objects;
        Ok(list_version)
    }

    /// Takes one event in.
    fn take(&self, event: &Value, from: &mut Option<u64>) -> anyhow::Result<()> {
        let object = &event["object"];
        let mut picture = self.lock();
        match event["type"].as_str().context("an event has a type")? {
            "ERROR" => {
                ensure!(object["code"] == 410, "a watch failed: {object}");
                picture.gone += 1;
                *from = None;
                return Ok(());
            }
            "BOOKMARK" => {}
            "DELETED" => {
                picture.objects.remove(&name(object));
            }
            _ => {
                picture.objects.insert(name(object), version(object)?);
            }
        }
        picture.events += 1;
        *from = Some(version(object)?);
        Ok(())
    }
}

/// Namespace and name of an object.
pub(super) fn name(object: &Value) -> String {
    let part = |key: &str| object["metadata"][key].as_str().unwrap_or_default();
    format!("{}/{}", part("namespace"), part("name"))
}

/// What a list holds.
pub(super) fn objects(items: &[Value]) -> anyhow::Result<Objects> {
    items.iter().map(|item| Ok((name(item), version(item)?))).collect()
}

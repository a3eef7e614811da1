//! The membership in the form that `.snap` files hold.
//!
//! Decides the JSON tree of etcd's former key space, of which only membership and cluster version
//! are left. Version 3.7 writes it and never reads it; 3.6 needs it after a downgrade. Called when
//! a raft snapshot is saved.
//!
//! ```text
//!   / -+- 0 -+- members --- <id> -+- raftAttributes   {"peerURLs":[..]}
//!      |     |                    +- attributes       {"name":..,"clientURLs":[..]}
//!      |     +- removed_members --- <id>
//!      |     +- version
//!      +- 1   (empty)
//! ```
//!
//! Deliberately absent: the history of watchers, which a reader starts afresh.
//!
//! Source: etcd `server/etcdserver/api/membership/storev2.go` and `api/v2store`.

use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::{Member, Membership, member::go_json};

const NEVER: &str = "0001-01-01T00:00:00Z";
/// The version of the tree's own format.
const FORMAT_VERSION: u64 = 2;

/// The tree for `membership`.
#[must_use]
pub fn v2_store_json(membership: &Membership) -> Bytes {
    let mut tree = Tree::default();
    let mut cluster = Map::new();
    let members = membership.members().map(|member| tree.member(member)).collect::<Map<_, _>>();
    if !members.is_empty() {
        cluster.insert("members".to_owned(), tree.directory("/0/members", members));
    }
    let removed = membership.removed().map(|id| {
        let path = format!("/0/removed_members/{id}");
        (id.to_string(), tree.leaf(&path, ""))
    });
    let removed = removed.collect::<Map<_, _>>();
    if !removed.is_empty() {
        cluster.insert("removed_members".to_owned(), tree.directory("/0/removed_members", removed));
    }
    if let Some(version) = membership.version() {
        cluster.insert("version".to_owned(), tree.leaf("/0/version", &version.to_string()));
    }
    let root = [
        ("0".to_owned(), tree.fixed_directory("/0", cluster)),
        ("1".to_owned(), tree.fixed_directory("/1", Map::new())),
    ];
    let root = tree.fixed_directory("/", Map::from_iter(root));
    go_json(&json!({
        "Root": root,
        "CurrentIndex": tree.index,
        "CurrentVersion": FORMAT_VERSION,
    }))
}

/// Numbers the changes that would have built the tree.
#[derive(Default)]
struct Tree {
    index: u64,
}

impl Tree {
    fn member(&mut self, member: &Member) -> (String, Value) {
        let path = format!("/0/members/{}", member.id);
        let first = self.index + 1;
        let mut children = Map::new();
        let mut attribute = |name: &str, json: Bytes| {
            let text = String::from_utf8_lossy(&json);
            let leaf = self.leaf(&format!("{path}/{name}"), &text);
            children.insert(name.to_owned(), leaf);
        };
        attribute("raftAttributes", member.raft_attributes_json());
        if !member.client_urls.is_empty() {
            attribute("attributes", member.attributes_json());
        }
        (member.id.to_string(), node(&path, first, "", Value::Object(children)))
    }

    fn leaf(&mut self, path: &str, value: &str) -> Value {
        self.index += 1;
        node(path, self.index, value, Value::Null)
    }

    fn directory(&self, path: &str, children: Map<String, Value>) -> Value {
        node(path, self.index, "", Value::Object(children))
    }

    /// One that was there before any change.
    #[expect(clippy::unused_self, reason = "reads like its siblings")]
    fn fixed_directory(&self, path: &str, children: Map<String, Value>) -> Value {
        node(path, 0, "", Value::Object(children))
    }
}

fn node(path: &str, index: u64, value: &str, children: Value) -> Value {
    json!({
        "Path": path,
        "CreatedIndex": index,
        "ModifiedIndex": index,
        "ExpireTime": NEVER,
        "Value": value,
        "Children": children,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cluster::Version, storage::Table};

    #[test]
    fn tree_of_one_member_is_that_of_an_official_snap_file() {
        let mut membership = Membership::default();
        let stored = br#"{"id":1,"peerURLs":["http://127.0.0.1:31380"],"name":"default","clientURLs":["http://127.0.0.1:31379"]}"#;
        membership.restore(Table::Members, b"8ddab73534be950c", stored).expect("valid");
        membership.set_version(Version::new(3, 7, 0), &mut Vec::new());

        let tree: Value = serde_json::from_slice(&v2_store_json(&membership)).expect("JSON");
        // The same pointers into a file that official etcd wrote lead to the same values.
        let member = "/Root/Children/0/Children/members/Children/8ddab73534be950c";
        let expected = [
            ("/Root/Path", "/"),
            ("/Root/Children/1/Path", "/1"),
            ("/Root/Children/0/Children/version/Value", "3.7.0"),
            (&format!("{member}/Path"), "/0/members/8ddab73534be950c"),
            (&format!("{member}/ExpireTime"), "0001-01-01T00:00:00Z"),
            (
                &format!("{member}/Children/raftAttributes/Value"),
                r#"{"peerURLs":["http://127.0.0.1:31380"]}"#,
            ),
            (
                &format!("{member}/Children/attributes/Value"),
                r#"{"name":"default","clientURLs":["http://127.0.0.1:31379"]}"#,
            ),
        ];
        for (pointer, value) in expected {
            let found = tree.pointer(pointer).and_then(Value::as_str);
            assert_eq!(found, Some(value), "at {pointer}");
        }
        assert_eq!(tree["CurrentIndex"], 3);
        assert_eq!(tree["Root"]["Children"]["1"]["Children"], json!({}));
        assert_eq!(
            tree.pointer(&format!("{member}/Children/attributes/Children")),
            Some(&Value::Null)
        );
    }
}

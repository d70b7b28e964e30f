//! What the nodes of a Redis cluster say of each other.

use std::net::{IpAddr, SocketAddr};

/// How many hash slots a cluster has.
pub const SLOTS: u16 = 16384;

/// Slots `first..=last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SlotRange {
    /// The first.
    pub first: u16,
    /// The last.
    pub last: u16,
}

/// A node that the cell should have, and what it says when it answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeView {
    /// The name of its pod.
    pub name: String,
    /// What it says; None when it does not answer.
    pub state: Option<NodeState>,
}

/// What a node says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeState {
    /// Where it answered.
    pub address: SocketAddr,
    /// How many keys it holds.
    pub keys: u64,
    /// How much of its master's stream it has seen.
    pub offset: u64,
    /// Whether it thinks that the cluster serves.
    pub ok: bool,
    /// All nodes that it knows, itself included.
    pub known: Vec<KnownNode>,
}

/// A line of CLUSTER NODES.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct KnownNode {
    /// The node's id.
    pub id: String,
    /// Where it is thought to be.
    pub address: Option<SocketAddr>,
    /// The port of the cluster bus.
    pub bus_port: u16,
    /// Whether this is the node that speaks.
    pub myself: bool,
    /// Whether it is a replica.
    pub replica: bool,
    /// Whether it does not answer, by its own suspicion or by agreement.
    pub failing: bool,
    /// Whether they are just being introduced; its id is not known yet then.
    pub handshake: bool,
    /// Whether there is a connection to it.
    pub connected: bool,
    /// The master that it copies.
    pub master: Option<String>,
    /// The slots that it owns.
    pub slots: Vec<SlotRange>,
}

impl NodeState {
    /// The line about the node itself.
    #[must_use]
    pub fn myself(&self) -> Option<&KnownNode> {
        self.known.iter().find(|node| node.myself)
    }

    /// The line about a node, once they have been introduced.
    #[must_use]
    pub fn knows(&self, id: &str) -> Option<&KnownNode> {
        self.known
            .iter()
            .find(|node| node.id == id && !node.handshake)
    }
}

/// Reads the answer to CLUSTER NODES; lines that are not understood are left out.
#[must_use]
pub fn parse_nodes(text: &str) -> Vec<KnownNode> {
    text.lines().filter_map(parse_node).collect()
}

/// `id ip:port@bus[,host] flags master ping pong epoch link slot...`
fn parse_node(line: &str) -> Option<KnownNode> {
    let mut words = line.split_ascii_whitespace();
    let (id, address, flags, master) = (words.next()?, words.next()?, words.next()?, words.next()?);
    let connected = words.nth(3)? == "connected";
    let (place, bus) = address
        .split(',')
        .next()
        .and_then(|address| address.split_once('@'))?;
    let (ip, port) = place.rsplit_once(':')?;
    let port: u16 = port.parse().ok()?;
    let flag = |name: &str| flags.split(',').any(|flag| flag == name);
    let ip = ip.parse::<IpAddr>().ok().filter(|_| !flag("noaddr"));
    Some(KnownNode {
        id: id.to_owned(),
        address: ip.map(|ip| SocketAddr::new(ip, port)),
        bus_port: bus.parse().ok()?,
        myself: flag("myself"),
        replica: flag("slave"),
        failing: flag("fail") || flag("fail?"),
        handshake: flag("handshake"),
        connected,
        master: (master != "-").then(|| master.to_owned()),
        slots: words.filter_map(parse_slots).collect(),
    })
}

/// `7`, `7-9`, or `[7->-id]` for a slot on its way, which its owner lists besides.
fn parse_slots(word: &str) -> Option<SlotRange> {
    let (first, last) = word.split_once('-').unwrap_or((word, word));
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last && last < SLOTS).then_some(SlotRange { first, last })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_redis_7_are_read() {
        let text = "\
07c3 10.0.0.7:6379@16379,redis-3 slave e7d1 0 1426238317239 4 connected
67ed 10.0.0.8:6379@16379 master,fail? - 0 1426238316232 2 disconnected 5461-10922 [93-<-07c3]
e7d1 :0@0 myself,master - 0 0 1 connected 0-5460 5999
aaaa fd00::7:6379@16379 handshake - 0 0 0 disconnected
bbbb :0@0 master,fail,noaddr - 1 1 3 disconnected
not a line
";
        let nodes = parse_nodes(text);
        assert_eq!(nodes.len(), 5);
        assert_eq!(nodes[0].master.as_deref(), Some("e7d1"));
        assert_eq!(nodes[0].address, Some("10.0.0.7:6379".parse().unwrap()));
        assert!(nodes[0].replica && nodes[0].connected && !nodes[0].failing);
        assert!(nodes[1].failing && !nodes[1].connected);
        let middle = SlotRange {
            first: 5461,
            last: 10922,
        };
        assert_eq!(nodes[1].slots, [middle]);
        assert!(nodes[2].myself && nodes[2].address.is_none());
        let single = SlotRange {
            first: 5999,
            last: 5999,
        };
        assert_eq!(nodes[2].slots[1], single);
        assert_eq!(nodes[3].address, Some("[fd00::7]:6379".parse().unwrap()));
        assert!(nodes[3].handshake);
        assert!(nodes[4].failing && nodes[4].address.is_none());
    }
}

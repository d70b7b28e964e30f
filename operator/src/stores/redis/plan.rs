//! From what the nodes of a Redis cluster say to the commands that form or repair it. Pure.
//!
//! Redis heals much by itself: a replica takes over when its master fails, a node that comes back finds its place.
//! What is left is what Redis cannot know: which nodes there should be. A node is **here** when it answers. When all
//! nodes are here, an id that none of them has belongs to a pod that was replaced and lost its disk: it is **gone**
//! for good. Only then is a node forgotten, are its slots given away, or is its replica told to take over without a
//! vote; while a node merely does not answer, it may be alive and serving behind a partition.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use super::view::{KnownNode, NodeState, NodeView, SLOTS, SlotRange};

/// A command to one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// The node that is told.
    pub on: String,
    /// What it is told.
    pub action: Action,
}

/// What a node can be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// To introduce itself to a node, or to find it again at its new address.
    Meet {
        /// The name of the other.
        name: String,
        /// Where the other is.
        address: SocketAddr,
        /// The port of the other's cluster bus.
        bus_port: u16,
    },
    /// To own slots that nobody owns.
    AddSlots(Vec<SlotRange>),
    /// To copy a master.
    Replicate {
        /// The name of the master.
        name: String,
        /// Its id.
        id: String,
    },
    /// To take the place of its master, which is gone for good, without a vote.
    Takeover,
    /// To forget a node that is gone for good.
    Forget {
        /// Its id.
        id: String,
    },
}

/// The commands that can be given now, and what is not yet as it should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Commands, in order.
    pub commands: Vec<Command>,
    /// What is still waited for, each in a phrase for people.
    pub waiting: Vec<String>,
    /// Whether every slot has an owner that answers and serves.
    pub serves: bool,
}

impl Plan {
    fn tell(&mut self, on: &str, action: Action) {
        self.commands.push(Command {
            on: on.to_owned(),
            action,
        });
    }
}

/// A node that answers.
struct Here<'a> {
    index: usize,
    name: &'a str,
    state: &'a NodeState,
    myself: &'a KnownNode,
}

impl Here<'_> {
    fn id(&self) -> &str {
        &self.myself.id
    }

    fn owns_slots(&self) -> bool {
        !self.myself.replica && !self.myself.slots.is_empty()
    }

    fn copies(&self, id: &str) -> bool {
        self.myself.replica && self.myself.master.as_deref() == Some(id)
    }
}

/// Everything that the steps look at.
struct Scene<'a> {
    here: Vec<Here<'a>>,
    all_here: bool,
    masters: usize,
    /// Owner of each slot among the nodes here, or what another node says of it.
    owners: Owners,
}

/// Plans the next commands for a cluster of `masters` masters. A healthy cluster gets none.
#[must_use]
pub fn plan(view: &[NodeView], masters: usize) -> Plan {
    let mut plan = Plan::default();
    let here: Vec<Here<'_>> = view.iter().enumerate().filter_map(here).collect();
    for missing in view.iter().filter(|node| node.state.is_none()) {
        plan.waiting
            .push(format!("{} does not answer", missing.name));
    }
    let ids: BTreeSet<&str> = here.iter().map(Here::id).collect();
    if ids.len() < here.len() {
        plan.waiting.push("two names lead to one node".to_owned());
    }
    let scene = Scene {
        all_here: ids.len() == view.len(),
        owners: Owners::of(&here),
        masters,
        here,
    };
    introduce(&scene, &mut plan);
    let settled = replace_the_gone(&scene, &mut plan);
    if settled && scene.owners.contested {
        plan.waiting
            .push("two masters claim the same slots".to_owned());
    } else if settled {
        give_slots_away(&scene, &mut plan);
        if scene.owners.unowned.is_empty() {
            assign_replicas(&scene, &mut plan);
        }
    }
    let unwell = scene.here.iter().filter(|node| !node.state.ok);
    let unwell: Vec<_> = unwell.map(|node| node.name).collect();
    if !unwell.is_empty() {
        plan.waiting
            .push(format!("{} do not see all slots served", unwell.join(", ")));
    }
    plan.serves = unwell.is_empty() && scene.owners.served();
    plan
}

fn here((index, node): (usize, &NodeView)) -> Option<Here<'_>> {
    let state = node.state.as_ref()?;
    let myself = state.myself()?;
    Some(Here {
        index,
        name: &node.name,
        state,
        myself,
    })
}

/// Has one node meet all others; gossip tells the rest.
fn introduce(scene: &Scene<'_>, plan: &mut Plan) {
    let acquainted = |node: &Here<'_>| {
        let others = scene.here.iter();
        others
            .filter(|other| node.state.knows(other.id()).is_some())
            .count()
    };
    let knows_slots =
        |node: &Here<'_>| node.state.known.iter().any(|known| !known.slots.is_empty());
    let rank = |node: &&Here<'_>| {
        let first = std::cmp::Reverse(node.index);
        (knows_slots(node), acquainted(node), first)
    };
    // Before a cluster is formed for the first time, all have to be there: one that is not may hold the data.
    if !scene.all_here && !scene.here.iter().any(knows_slots) {
        return;
    }
    let Some(host) = scene.here.iter().max_by_key(rank) else {
        return;
    };
    for guest in scene.here.iter().filter(|guest| guest.index != host.index) {
        let known = host.state.knows(guest.id());
        if known.is_some_and(|known| known.connected && !known.failing) {
            let mutual = guest.state.knows(host.id()).is_some();
            if !mutual {
                plan.waiting
                    .push(format!("{} has yet to meet {}", guest.name, host.name));
            }
            continue;
        }
        let address = guest.state.address;
        let meeting = |known: &KnownNode| known.handshake && known.address == Some(address);
        let expected = known.is_some_and(|known| known.address == Some(address));
        if !expected && !host.state.known.iter().any(meeting) {
            let action = Action::Meet {
                name: guest.name.to_owned(),
                address,
                bus_port: guest.myself.bus_port,
            };
            plan.tell(host.name, action);
        }
        plan.waiting
            .push(format!("{} has yet to reach {}", host.name, guest.name));
    }
}

/// Has replicas of gone masters take over, and gone nodes forgotten. Returns whether no slot is left with the gone.
fn replace_the_gone(scene: &Scene<'_>, plan: &mut Plan) -> bool {
    if !scene.all_here {
        return !scene.owners.absent;
    }
    let ids: BTreeSet<&str> = scene.here.iter().map(Here::id).collect();
    let known = scene.here.iter().flat_map(|node| &node.state.known);
    let gone = known.filter(|known| !known.handshake && !ids.contains(known.id.as_str()));
    let mut settled = true;
    for id in gone.map(|known| known.id.as_str()).collect::<BTreeSet<_>>() {
        let lines = scene.here.iter().filter_map(|node| node.state.knows(id));
        let owned_slots = lines.flat_map(|line| &line.slots).next().is_some();
        let copies = scene.here.iter().filter(|node| node.copies(id));
        let heir = copies.max_by_key(|node| (node.state.offset, std::cmp::Reverse(node.index)));
        match heir {
            // With slots elsewhere already, the replica is only in need of another master.
            Some(heir) if owned_slots => {
                plan.tell(heir.name, Action::Takeover);
                plan.waiting.push(format!("{} takes over", heir.name));
                settled = false;
            }
            Some(_) => {}
            None => {
                for node in &scene.here {
                    if node.state.knows(id).is_some() {
                        plan.tell(node.name, Action::Forget { id: id.to_owned() });
                    }
                }
                settled &= !owned_slots;
            }
        }
    }
    settled
}

/// Gives slots that nobody owns to masters: at first, or after all copies of them were lost.
fn give_slots_away(scene: &Scene<'_>, plan: &mut Plan) {
    let unowned = &scene.owners.unowned;
    if unowned.is_empty() {
        return;
    }
    if !scene.all_here {
        plan.waiting.push("slots without an owner".to_owned());
        return;
    }
    let mut gifts: BTreeMap<usize, Vec<SlotRange>> = BTreeMap::new();
    for shard in 0..scene.masters {
        let slots = shard_slots(shard, scene.masters);
        let unowned = unowned.iter().copied().filter(|slot| slots.contains(slot));
        let unowned = ranges(unowned);
        if unowned.is_empty() {
            continue;
        }
        let candidates = scene.here.iter().filter(|node| !node.myself.replica);
        let preference = |node: &&Here<'_>| {
            let in_shard = scene.owners.count(node.index, &slots);
            let taken = node.owns_slots() || gifts.contains_key(&node.index);
            let home = node.index == shard;
            (std::cmp::Reverse(in_shard), taken, !home, node.index)
        };
        if let Some(node) = candidates.min_by_key(preference) {
            gifts.entry(node.index).or_default().extend(unowned);
        }
    }
    for (index, slots) in gifts {
        let Some(node) = scene.here.iter().find(|node| node.index == index) else {
            continue;
        };
        plan.waiting.push(format!("{} takes slots", node.name));
        let busy = node.state.known.iter().flat_map(|known| &known.slots);
        let mut busy = busy.filter(|busy| slots.iter().any(|gift| overlap(gift, busy)));
        // Redis refuses a slot that the node still thinks another's; gossip puts that right.
        if busy.next().is_none() {
            plan.tell(node.name, Action::AddSlots(slots));
        }
    }
}

/// Gives every master without slots, and every replica without a proper master, to the master with the fewest copies.
fn assign_replicas(scene: &Scene<'_>, plan: &mut Plan) {
    let masters: Vec<&Here<'_>> = scene.here.iter().filter(|node| node.owns_slots()).collect();
    let mut copies: BTreeMap<usize, Vec<usize>> = masters
        .iter()
        .map(|node| (node.index, Vec::new()))
        .collect();
    let mut loose = Vec::new();
    for node in scene.here.iter().filter(|node| !node.owns_slots()) {
        match masters.iter().find(|master| node.copies(master.id())) {
            Some(master) => copies.entry(master.index).or_default().push(node.index),
            // The master of a replica may be away, and come back.
            None if node.myself.replica && !scene.all_here && !scene.demoted(node) => {}
            None => loose.push(node),
        }
    }
    // Those that are away keep their place.
    let ids: BTreeSet<&str> = scene.here.iter().map(Here::id).collect();
    let away = |known: &&KnownNode| known.replica && !ids.contains(known.id.as_str());
    for master in &masters {
        let away = master.state.known.iter().filter(away);
        let away = away.filter(|known| known.master.as_deref() == Some(master.id()));
        let places = away.map(|_| usize::MAX);
        copies.entry(master.index).or_default().extend(places);
    }
    let assigned = !loose.is_empty();
    for node in loose {
        if !node.myself.replica && node.state.keys > 0 {
            plan.waiting.push(format!(
                "{} owns no slots and yet holds {} keys, so it cannot become a replica: look at them, then run \
                 FLUSHALL on it",
                node.name, node.state.keys
            ));
            continue;
        }
        let pairs = |index: usize| index % scene.masters == node.index % scene.masters;
        let load =
            |(index, copies): &(&usize, &Vec<usize>)| (copies.len(), !pairs(**index), **index);
        let Some(chosen) = copies.iter().min_by_key(load).map(|(index, _)| *index) else {
            continue;
        };
        copies.entry(chosen).or_default().push(node.index);
        replicate(&masters, node, chosen, plan);
    }
    let starved = copies.iter().find(|(_, copies)| copies.is_empty());
    let rich = copies.iter().find(|(_, copies)| copies.len() > 1);
    if !assigned
        && scene.all_here
        && let (Some((starved, _)), Some((_, rich))) = (starved, rich)
        && let Some(node) = scene.here.iter().rfind(|node| rich.contains(&node.index))
    {
        replicate(&masters, node, *starved, plan);
    }
}

fn replicate(masters: &[&Here<'_>], node: &Here<'_>, master: usize, plan: &mut Plan) {
    let Some(master) = masters.iter().find(|node| node.index == master) else {
        return;
    };
    plan.waiting.push(format!(
        "{} becomes a replica of {}",
        node.name, master.name
    ));
    if node.state.knows(master.id()).is_some() {
        let action = Action::Replicate {
            name: master.name.to_owned(),
            id: master.id().to_owned(),
        };
        plan.tell(node.name, action);
    }
}

impl Scene<'_> {
    /// Whether the node's master is here and owns nothing any more.
    fn demoted(&self, node: &Here<'_>) -> bool {
        let master = self.here.iter().find(|master| node.copies(master.id()));
        master.is_some_and(|master| !master.owns_slots())
    }
}

/// Who owns which slot.
struct Owners {
    /// By slot, the index of a node that is here.
    here: Vec<Option<usize>>,
    /// Slots that nobody owns in anybody's eyes.
    unowned: Vec<u16>,
    /// Whether two nodes that are here claim one slot.
    contested: bool,
    /// Whether a slot belongs to a node that is not here.
    absent: bool,
}

impl Owners {
    fn of(nodes: &[Here<'_>]) -> Self {
        let mut here: Vec<Option<usize>> = vec![None; usize::from(SLOTS)];
        let mut owned = vec![false; usize::from(SLOTS)];
        let mut contested = false;
        for node in nodes.iter().filter(|node| node.owns_slots()) {
            for slot in each(&node.myself.slots) {
                let owner = &mut here[usize::from(slot)];
                contested |= owner.is_some();
                *owner = Some(node.index);
                owned[usize::from(slot)] = true;
            }
        }
        let ids: BTreeSet<&str> = nodes.iter().map(Here::id).collect();
        let lines = nodes.iter().flat_map(|node| &node.state.known);
        for line in lines.filter(|line| !ids.contains(line.id.as_str())) {
            each(&line.slots).for_each(|slot| owned[usize::from(slot)] = true);
        }
        let unowned = (0..SLOTS)
            .filter(|slot| !owned[usize::from(*slot)])
            .collect();
        let absent = owned
            .iter()
            .zip(&here)
            .any(|(owned, here)| *owned && here.is_none());
        Self {
            here,
            unowned,
            contested,
            absent,
        }
    }

    fn served(&self) -> bool {
        self.here.iter().all(Option::is_some)
    }

    fn count(&self, index: usize, slots: &std::ops::Range<u16>) -> usize {
        let slots = self
            .here
            .iter()
            .zip(0..)
            .filter(|(_, slot)| slots.contains(slot));
        slots.filter(|(owner, _)| **owner == Some(index)).count()
    }
}

fn each(ranges: &[SlotRange]) -> impl Iterator<Item = u16> {
    ranges.iter().flat_map(|range| range.first..=range.last)
}

fn overlap(one: &SlotRange, other: &SlotRange) -> bool {
    one.first <= other.last && other.first <= one.last
}

/// The slots of the n-th of so many masters.
fn shard_slots(shard: usize, masters: usize) -> std::ops::Range<u16> {
    let bound = |shard: usize| usize::from(SLOTS) * shard / masters.max(1);
    let narrow = |slot: usize| u16::try_from(slot).unwrap_or(SLOTS);
    narrow(bound(shard))..narrow(bound(shard + 1))
}

fn ranges(slots: impl Iterator<Item = u16>) -> Vec<SlotRange> {
    let mut ranges: Vec<SlotRange> = Vec::new();
    for slot in slots {
        match ranges.last_mut() {
            Some(range) if range.last + 1 == slot => range.last = slot,
            _ => ranges.push(SlotRange {
                first: slot,
                last: slot,
            }),
        }
    }
    ranges
}

//! Plans tried against a model of a Redis cluster whose pods fail in every way that pods do.
//!
//! The model keeps, for each node, what it knows and claims, and lets gossip spread that as Redis does. Slots are
//! modelled by thirds. Every command is checked against the truth, which the plan cannot see.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use proptest::prelude::*;

use super::plan::{Action, Command, Plan, plan};
use super::view::{KnownNode, NodeState, NodeView, SlotRange};

const PODS: usize = 6;
const SHARDS: [SlotRange; 3] = [
    SlotRange {
        first: 0,
        last: 5460,
    },
    SlotRange {
        first: 5461,
        last: 10921,
    },
    SlotRange {
        first: 10922,
        last: 16383,
    },
];

/// A Redis with its disk.
#[derive(Clone, Debug)]
struct Body {
    address: SocketAddr,
    master: Option<String>,
    epoch: u64,
    known: BTreeMap<String, SocketAddr>,
    forgotten: BTreeSet<String>,
    /// Whom it thinks the owner of each third, and since which epoch.
    owners: BTreeMap<usize, (String, u64)>,
    /// Whom it thinks the master of each other node.
    masters: BTreeMap<String, Option<String>>,
}

impl Body {
    fn owned_by(&self, id: &str) -> Vec<usize> {
        let owned = self.owners.iter().filter(|(_, (owner, _))| owner == id);
        owned.map(|(shard, _)| *shard).collect()
    }
}

struct World {
    pods: Vec<(String, bool)>,
    bodies: BTreeMap<String, Body>,
    serial: u16,
    epoch: u64,
}

#[derive(Clone, Copy, Debug)]
enum Event {
    /// A pod stops answering.
    Stop(usize),
    /// It comes back with its disk, elsewhere.
    Return(usize),
    /// It comes back with an empty disk.
    Replace(usize),
    /// Redis elects replicas of masters that do not answer.
    Vote,
    /// Word gets round.
    Gossip,
    /// The operator looks and gives at most so many commands before it crashes.
    Reconcile(usize),
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            pods: vec![(String::new(), false); PODS],
            bodies: BTreeMap::new(),
            serial: 0,
            epoch: 0,
        };
        (0..PODS).for_each(|pod| world.replace(pod));
        world
    }

    fn address(&mut self) -> SocketAddr {
        self.serial += 1;
        SocketAddr::from(([10, 0, 0, 1], self.serial))
    }

    fn replace(&mut self, pod: usize) {
        let address = self.address();
        let id = format!("id{}", self.serial);
        self.bodies.remove(&self.pods[pod].0);
        self.bodies.insert(
            id.clone(),
            Body {
                address,
                master: None,
                epoch: 0,
                known: BTreeMap::new(),
                forgotten: BTreeSet::new(),
                owners: BTreeMap::new(),
                masters: BTreeMap::new(),
            },
        );
        self.pods[pod] = (id, true);
    }

    fn is_up(&self, id: &str) -> bool {
        self.pods.iter().any(|(body, up)| *up && body == id)
    }

    fn up(&self) -> Vec<String> {
        let up = self.pods.iter().filter(|(_, up)| *up);
        up.map(|(id, _)| id.clone()).collect()
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Stop(pod) => self.pods[pod].1 = false,
            Event::Return(pod) if !self.pods[pod].1 => {
                let address = self.address();
                self.pods[pod].1 = true;
                self.bodies.get_mut(&self.pods[pod].0).unwrap().address = address;
            }
            Event::Return(_) => {}
            Event::Replace(pod) => self.replace(pod),
            Event::Vote => self.vote(),
            Event::Gossip => self.gossip(),
            Event::Reconcile(limit) => {
                for command in self.plan().commands.into_iter().take(limit) {
                    self.obey(&command);
                }
            }
        }
    }

    fn view(&self) -> Vec<NodeView> {
        let pods = self.pods.iter().enumerate();
        pods.map(|(number, (id, up))| NodeView {
            name: format!("redis-{number}"),
            state: up.then(|| self.state(id)),
        })
        .collect()
    }

    fn plan(&self) -> Plan {
        plan(&self.view(), SHARDS.len())
    }

    fn state(&self, id: &str) -> NodeState {
        let body = &self.bodies[id];
        let line = |id: &str, address: SocketAddr, master: &Option<String>| KnownNode {
            id: id.to_owned(),
            address: Some(address),
            bus_port: 1,
            replica: master.is_some(),
            master: master.clone(),
            connected: true,
            slots: body
                .owned_by(id)
                .into_iter()
                .map(|shard| SHARDS[shard])
                .collect(),
            ..KnownNode::default()
        };
        let myself = KnownNode {
            myself: true,
            ..line(id, body.address, &body.master)
        };
        let others = body.known.iter().map(|(id, address)| {
            let reached = self.is_up(id) && self.bodies[id].address == *address;
            let master = body.masters.get(id).cloned().flatten();
            KnownNode {
                connected: reached,
                failing: !reached,
                ..line(id, *address, &master)
            }
        });
        NodeState {
            address: body.address,
            keys: 0,
            offset: 0,
            ok: body.owners.len() == SHARDS.len(),
            known: std::iter::once(myself).chain(others).collect(),
        }
    }

    fn gossip(&mut self) {
        for _ in 0..4 {
            for one in self.up() {
                for two in self.up() {
                    self.exchange(&one, &two);
                }
            }
        }
    }

    /// What two nodes that know each other, one of them at the right address, tell each other.
    fn exchange(&mut self, one: &str, two: &str) {
        let (teller, listener) = (self.bodies[one].clone(), self.bodies[two].clone());
        let (there, back) = (teller.known.get(two), listener.known.get(one));
        let reached = there == Some(&listener.address) || back == Some(&teller.address);
        if one == two || there.is_none() || back.is_none() || !reached {
            return;
        }
        let mut learned = listener;
        learned.known.insert(one.to_owned(), teller.address);
        learned
            .masters
            .insert(one.to_owned(), teller.master.clone());
        for (id, address) in &teller.known {
            let stranger = id != two && !learned.forgotten.contains(id);
            if stranger && self.is_up(id) && self.bodies[id].address == *address {
                learned.known.insert(id.clone(), *address);
                let me = learned.address;
                let other = self.bodies.get_mut(id).unwrap();
                if !other.forgotten.contains(two) {
                    other.known.insert(two.to_owned(), me);
                }
            }
        }
        for shard in teller.owned_by(one) {
            let newer = learned
                .owners
                .get(&shard)
                .is_none_or(|(owner, epoch)| owner != one && *epoch < teller.epoch);
            if newer {
                let lost = learned.owners.insert(shard, (one.to_owned(), teller.epoch));
                let mine = lost.is_some_and(|(owner, _)| owner == two);
                if mine && learned.owned_by(two).is_empty() {
                    learned.master = Some(one.to_owned());
                }
            }
        }
        self.bodies.insert(two.to_owned(), learned);
    }

    fn vote(&mut self) {
        for id in self.up() {
            let body = &self.bodies[&id];
            let Some(master) = body.master.clone().filter(|master| !self.is_up(master)) else {
                continue;
            };
            let electors: BTreeSet<_> = body.owners.values().map(|(owner, _)| owner).collect();
            let answer = electors.iter().filter(|owner| self.is_up(owner)).count();
            if answer * 2 > electors.len() && !body.owned_by(&master).is_empty() {
                self.take_over(&id, &master);
            }
        }
    }

    fn take_over(&mut self, id: &str, master: &str) {
        self.epoch += 1;
        let body = self.bodies.get_mut(id).unwrap();
        (body.master, body.epoch) = (None, self.epoch);
        for shard in body.owned_by(master) {
            body.owners.insert(shard, (id.to_owned(), self.epoch));
        }
    }

    /// Carries out a command, after checking it against the truth.
    fn obey(&mut self, command: &Command) {
        let number: usize = command.on.strip_prefix("redis-").unwrap().parse().unwrap();
        let on = self.pods[number].0.clone();
        assert!(self.is_up(&on), "{command:?} to a node that is down");
        match &command.action {
            Action::Meet { address, .. } => {
                let other = self
                    .up()
                    .into_iter()
                    .find(|id| self.bodies[id].address == *address);
                let other = other.expect("a node of the cell is met where it is");
                let me = self.bodies[&on].address;
                let (mine, theirs) = (on.clone(), other.clone());
                self.bodies
                    .get_mut(&on)
                    .unwrap()
                    .known
                    .insert(theirs, *address);
                self.bodies.get_mut(&other).unwrap().known.insert(mine, me);
            }
            Action::AddSlots(slots) => {
                self.epoch += 1;
                for slots in slots {
                    let shard = SHARDS.iter().position(|shard| shard == slots).unwrap();
                    for (id, body) in &self.bodies {
                        let theirs = body.owned_by(id).contains(&shard);
                        assert!(!theirs, "{command:?}: {id} has the data on its disk");
                    }
                    let body = self.bodies.get_mut(&on).unwrap();
                    assert!(body.master.is_none() && !body.owners.contains_key(&shard));
                    body.owners.insert(shard, (on.clone(), self.epoch));
                    body.epoch = self.epoch;
                }
            }
            Action::Replicate { id, .. } => {
                assert!(
                    self.is_up(id) && self.bodies[id].master.is_none(),
                    "{command:?}"
                );
                let body = self.bodies.get_mut(&on).unwrap();
                assert!(body.owned_by(&on).is_empty() && body.known.contains_key(id));
                body.master = Some(id.clone());
            }
            Action::Takeover => {
                let master = self.bodies[&on]
                    .master
                    .clone()
                    .expect("only a replica takes over");
                assert!(
                    !self.bodies.contains_key(&master),
                    "{command:?}: its master may come back"
                );
                self.take_over(&on, &master);
            }
            Action::Forget { id } => {
                assert!(
                    !self.bodies.contains_key(id),
                    "{command:?}: it may come back"
                );
                let body = self.bodies.get_mut(&on).unwrap();
                assert_ne!(
                    body.master.as_ref(),
                    Some(id),
                    "Redis refuses to forget a master"
                );
                body.known.remove(id);
                body.forgotten.insert(id.clone());
                body.owners.retain(|_, (owner, _)| owner != id);
            }
        }
    }

    /// Reconciles until nothing is left to do.
    fn settle(&mut self) {
        for _ in 0..20 {
            self.happen(Event::Gossip);
            if self.plan()
                == (Plan {
                    serves: true,
                    ..Plan::default()
                })
            {
                return;
            }
            self.happen(Event::Reconcile(usize::MAX));
        }
        panic!("not settled: {:#?}\n{:#?}", self.plan(), self.bodies);
    }

    fn assert_whole(&self) {
        let bodies: Vec<_> = self
            .pods
            .iter()
            .map(|(id, _)| (id, &self.bodies[id]))
            .collect();
        let masters: Vec<_> = bodies
            .iter()
            .filter(|(_, body)| body.master.is_none())
            .collect();
        let owned: usize = masters
            .iter()
            .map(|(id, body)| body.owned_by(id).len())
            .sum();
        assert_eq!(owned, SHARDS.len(), "{bodies:#?}");
        for (id, _) in masters {
            let copies = bodies
                .iter()
                .filter(|(_, body)| body.master.as_ref() == Some(id));
            assert!(copies.count() >= 1, "{bodies:#?}");
        }
    }
}

#[test]
fn six_fresh_nodes_become_three_masters_with_a_replica_each() {
    let mut world = World::new();
    let first = world.plan();
    let verbs = |plan: &Plan, meet: bool| {
        let commands = plan.commands.iter();
        commands
            .filter(|c| matches!(c.action, Action::Meet { .. }) == meet)
            .count()
    };
    assert_eq!(
        (verbs(&first, true), verbs(&first, false)),
        (5, 3),
        "{first:#?}"
    );
    assert!(!first.serves);
    world.settle();
    for pod in 0..3 {
        let (id, copy) = (&world.pods[pod].0, &world.pods[pod + 3].0);
        assert_eq!(world.bodies[id].owned_by(id), [pod]);
        assert_eq!(world.bodies[copy].master.as_ref(), Some(id));
    }
}

#[test]
fn a_cluster_that_serves_with_a_node_away_is_left_alone() {
    for pod in 0..PODS {
        let mut world = World::new();
        world.settle();
        world.happen(Event::Stop(pod));
        world.happen(Event::Vote);
        world.happen(Event::Gossip);
        let plan = world.plan();
        assert_eq!(plan.commands, [], "redis-{pod} away");
        assert!(plan.serves);
        assert_eq!(plan.waiting, [format!("redis-{pod} does not answer")]);
    }
}

#[test]
fn a_shard_that_lost_both_copies_starts_empty() {
    let mut world = World::new();
    world.settle();
    world.happen(Event::Replace(1));
    world.happen(Event::Replace(4));
    // The two are introduced before the operator gets any further.
    world.happen(Event::Reconcile(2));
    world.happen(Event::Gossip);
    world.settle();
    world.assert_whole();
    // By one of the nodes that are free, so that no master has more than its third.
    assert_eq!(
        world.bodies[&world.pods[1].0].owned_by(&world.pods[1].0),
        [1]
    );
}

#[test]
fn while_two_claim_the_same_slots_nothing_is_moved() {
    let mut world = World::new();
    world.settle();
    world.happen(Event::Stop(0));
    world.happen(Event::Vote);
    world.happen(Event::Gossip);
    // redis-0 is back and has not yet heard that redis-3 took over; redis-2 happens to have two replicas.
    let surplus = world.pods[2].0.clone();
    world
        .bodies
        .get_mut(&world.pods[4].0.clone())
        .unwrap()
        .master = Some(surplus);
    world.pods[0].1 = true;
    let plan = world.plan();
    assert_eq!(plan.commands, []);
    assert!(
        plan.waiting
            .contains(&"two masters claim the same slots".to_owned()),
        "{plan:?}"
    );
    world.settle();
    world.assert_whole();
}

#[test]
fn one_node_under_two_names_is_never_taken_for_a_lost_one() {
    let mut world = World::new();
    world.settle();
    let mut view = world.view();
    view[3].state = view[2].state.clone();
    let plan = plan(&view, SHARDS.len());
    assert_eq!(plan.commands, []);
    assert!(
        plan.waiting
            .contains(&"two names lead to one node".to_owned())
    );
}

#[test]
fn a_node_with_keys_of_unknown_origin_is_not_emptied() {
    let mut world = World::new();
    world.settle();
    world.happen(Event::Replace(5));
    world.happen(Event::Reconcile(1));
    world.happen(Event::Gossip);
    world.happen(Event::Reconcile(usize::MAX));
    world.happen(Event::Replace(5));
    world.happen(Event::Reconcile(1));
    world.happen(Event::Gossip);
    let mut view = world.view();
    view[5].state.as_mut().unwrap().keys = 7;
    let plan = plan(&view, SHARDS.len());
    let replicates = |command: &&Command| matches!(command.action, Action::Replicate { .. });
    assert_eq!(plan.commands.iter().find(replicates), None);
    assert!(
        plan.waiting
            .iter()
            .any(|said| said.contains("holds 7 keys")),
        "{plan:?}"
    );
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let pod = 0..PODS;
    let event = prop_oneof![
        2 => pod.clone().prop_map(Event::Stop),
        2 => pod.clone().prop_map(Event::Return),
        2 => pod.prop_map(Event::Replace),
        2 => Just(Event::Vote),
        3 => Just(Event::Gossip),
        4 => (0..12_usize).prop_map(Event::Reconcile),
    ];
    prop::collection::vec(event, 0..30)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_no_data_is_given_up_and_the_cluster_becomes_whole(
        formed: bool,
        events in events(),
        returns: [bool; PODS],
    ) {
        let mut world = World::new();
        if formed {
            world.settle();
        }
        for event in events {
            world.happen(event);
        }
        for (pod, returns) in returns.into_iter().enumerate() {
            if !world.pods[pod].1 {
                world.happen(if returns { Event::Return(pod) } else { Event::Replace(pod) });
            }
        }
        world.settle();
        world.assert_whole();
    }
}

//! What a Cell refers to.

use std::fmt::Debug;
use std::sync::Arc;

use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use titan_crds::{Cell, CellFleet, ServiceProfile};
use titan_planner::Observed;
use titan_planner::cell::key_range;
use titan_routing::KeyRange;

use crate::run::context::Context;

/// The resources that a Cell names.
pub(crate) struct Dereferenced {
    pub(crate) profile: Observed<Arc<ServiceProfile>>,
    pub(crate) fleet: Observed<Arc<CellFleet>>,
}

pub(crate) async fn dereference(cell: &Cell, context: &Context) -> Dereferenced {
    let (profile, fleet) = tokio::join!(
        look_up(&context.profiles, &context.client, &cell.spec.profile),
        look_up(&context.fleets, &context.client, &cell.spec.fleet),
    );
    Dereferenced { profile, fleet }
}

/// Looks in the cache first. A cache may lag, so what is missing there is asked for once more, at the source: refusing a
/// cell because of an old view would be wrong.
async fn look_up<K>(store: &Store<K>, client: &Client, name: &str) -> Observed<Arc<K>>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + 'static,
{
    if let Some(found) = store.get(&ObjectRef::new(name)) {
        return Observed::Known(found);
    }
    match Api::<K>::all(client.clone()).get_opt(name).await {
        Ok(Some(found)) => Observed::Known(Arc::new(found)),
        Ok(None) => Observed::Absent,
        Err(error) => {
            tracing::warn!(kind = %K::kind(&()), name, %error, "cannot look up");
            Observed::Unknown
        }
    }
}

/// The claim that a Cell was not granted yet.
pub(crate) fn open_claim(cell: &Cell) -> Option<KeyRange> {
    let granted = cell.status.as_ref().is_some_and(|it| it.claim_granted);
    let claim = cell.spec.user_range.filter(|_| !granted)?;
    key_range(claim).ok()
}

/// Borrows what was looked up.
pub(crate) fn as_ref<K>(observed: &Observed<Arc<K>>) -> Observed<&K> {
    match observed {
        Observed::Known(value) => Observed::Known(value),
        Observed::Unknown => Observed::Unknown,
        Observed::Absent => Observed::Absent,
    }
}

//! What conversations pass through, such as their tools: templates put it at the start of a prompt,
//! so a prompt that is sent ahead needs it as well.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard},
};

use memcube_schemas::{ConversationId, limits::REMOTE_EXTRAS_MAX};

use crate::cube::CubeKey;

struct Extra {
    key: CubeKey,
    conversation: ConversationId,
    fields: Arc<str>,
}

/// What the conversations passed through that spoke last. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Extras {
    /// The one that spoke last comes last.
    held: Arc<Mutex<VecDeque<Extra>>>,
}

impl Extras {
    fn held(&self) -> MutexGuard<'_, VecDeque<Extra>> {
        self.held.lock().expect("invariant: nothing panics while it holds them")
    }

    /// Notes what a turn passes through.
    pub(super) fn note(
        &self,
        key: &CubeKey,
        conversation: &ConversationId,
        fields: Option<&Arc<str>>,
    ) {
        let mut held = self.held();
        held.retain(|extra| extra.key != *key || extra.conversation != *conversation);
        let Some(fields) = fields else { return };
        if held.len() == REMOTE_EXTRAS_MAX {
            held.pop_front();
        }
        let (key, conversation, fields) = (key.clone(), conversation.clone(), Arc::clone(fields));
        held.push_back(Extra { key, conversation, fields });
    }

    /// What the last turn of a conversation passed through.
    pub(super) fn of(&self, key: &CubeKey, conversation: &ConversationId) -> Option<Arc<str>> {
        let held = self.held();
        let is_meant = |extra: &&Extra| extra.key == *key && extra.conversation == *conversation;
        held.iter().rev().find(is_meant).map(|extra| Arc::clone(&extra.fields))
    }
}

#[cfg(test)]
mod tests {
    use memcube_schemas::{CubeId, TenantId};

    use super::*;

    #[test]
    fn the_last_of_a_conversation_counts_and_the_oldest_go() {
        let key = |tenant: &str| CubeKey {
            tenant: TenantId::new(tenant).expect("valid"),
            cube: CubeId::new("ann").expect("valid"),
        };
        let talk = |n: usize| ConversationId::new(format!("talk {n}")).expect("valid");
        let extras = Extras::default();
        let (first, second): (Arc<str>, Arc<str>) = ("{1}".into(), "{2}".into());
        extras.note(&key("acme"), &talk(0), Some(&first));
        extras.note(&key("acme"), &talk(0), Some(&second));
        assert_eq!(extras.of(&key("acme"), &talk(0)), Some(second));
        assert_eq!(extras.of(&key("apex"), &talk(0)), None, "another tenant's");
        extras.note(&key("acme"), &talk(0), None);
        assert_eq!(extras.of(&key("acme"), &talk(0)), None);
        for n in 0..=REMOTE_EXTRAS_MAX {
            extras.note(&key("acme"), &talk(n), Some(&first));
        }
        assert_eq!(extras.of(&key("acme"), &talk(0)), None, "the oldest went");
        assert_eq!(extras.of(&key("acme"), &talk(REMOTE_EXTRAS_MAX)), Some(first));
    }
}

//! Envelope: a generation as one workload gets it, signed.
//!
//! All sidecars of a workload that call the same services get the same bytes, which are put
//! together and signed once, and live as long as somebody is to be sent them.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use parking_lot::Mutex;
use remora::sync::wire::{Envelope, Generation};
use remora_certs::{signed, spiffe_id::SpiffeId, svid::Svid};
use tracing::warn;

use super::content::Content;

/// What nobody has any more is looked for first when there is so much.
const SWEEP: usize = 64;

/// Services of one workload; who says it calls more gets the documents of the first ones.
const SERVICES_MAX: usize = 1_000;

/// Characters of a line of PEM.
const LINE: usize = 64;

/// A generation that is handed out.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) number: u64,
    pub(super) content: Arc<Content>,
    made: Mutex<Made>,
}

/// What was made of it so far, all by one signer.
#[derive(Debug, Default)]
struct Made {
    /// The signer's chain, in PEM.
    chain: String,
    /// By whose it is and the services it is for.
    envelopes: HashMap<(SpiffeId, Vec<String>), Weak<Envelope>>,
    /// At how many of them to look for what nobody has.
    sweep: usize,
}

impl Held {
    pub(super) fn new(number: u64, content: Arc<Content>) -> Self {
        Self { number, content, made: Mutex::default() }
    }

    /// What `id` gets, which calls `services`.
    pub(super) fn envelope(
        &self,
        id: &SpiffeId,
        services: &[String],
        signer: &Svid,
    ) -> Option<Arc<Envelope>> {
        let mut services: Vec<_> = services.iter().take(SERVICES_MAX).cloned().collect();
        services.sort_unstable();
        services.dedup();
        let chain = pem(signer);
        let key = (id.clone(), services);
        let mut made = self.made.lock();
        if made.chain != chain {
            *made = Made { chain, ..Made::default() };
        }
        if let Some(envelope) = made.envelopes.get(&key).and_then(Weak::upgrade) {
            return Some(envelope);
        }
        let files = self.content.select(id, &key.1);
        let generation = Generation { number: self.number, audience: id.to_string(), files };
        let payload = serde_json::to_string(&generation).unwrap_or_default();
        let signature = match signed::sign(payload.as_bytes(), signer) {
            Ok(it) => STANDARD.encode(it),
            Err(error) => {
                warn!(%error, "policy cannot be signed");
                return None;
            }
        };
        let envelope = Arc::new(Envelope { payload, signature, chain: made.chain.clone() });
        if made.sweep <= made.envelopes.len() {
            made.envelopes.retain(|_, it| 0 < it.strong_count());
            made.sweep = made.envelopes.len().max(SWEEP) * 2;
        }
        made.envelopes.insert(key, Arc::downgrade(&envelope));
        Some(envelope)
    }
}

fn pem(signer: &Svid) -> String {
    let mut text = String::new();
    for certificate in signer.chain() {
        let base64 = STANDARD.encode(certificate);
        text.push_str("-----BEGIN CERTIFICATE-----\n");
        for line in base64.as_bytes().chunks(LINE) {
            text.extend(line.iter().map(|it| char::from(*it)));
            text.push('\n');
        }
        text.push_str("-----END CERTIFICATE-----\n");
    }
    text
}

//! Certificates: asked for with a key of our own, examined, and only then written.
//!
//! The key is made here for each certificate and written once, beside it. A request that
//! was not answered is sent again as it is: its token may be good for one key only, and the
//! answer may have been lost on the way.
//!
//! While there is a certificate it is what proves who asks. The token is for the first one,
//! for one that has ended, and for one that control does not accept any more.

use std::{fs, sync::Arc, time::Duration};

use http::HeaderValue;
use remora_certs::{
    authority::Key,
    bundle::{self, Bundle},
    csr,
    folder::{self, File},
    spiffe_id::SpiffeId,
    svid::Svid,
};
use zeroize::Zeroizing;

use super::{
    Config, Source, Sync, Target,
    client::{self, Client},
    wire::{self, CONTROL_PATH, SigningRequest},
};
use crate::identity::{
    self, Material,
    control::{Named, Terms},
    material::fingerprints,
};

/// The most a token may have; those of Kubernetes have about one KiB.
const TOKEN_MAX: usize = 16 * 1024;

/// Why something could not be had, or not be kept.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    #[error(transparent)]
    Control(#[from] client::Error),
    #[error("the roots in `{path}` cannot be read: {reason}")]
    Roots { path: String, reason: String },
    #[error("no roots to know control by; name them with `--control-ca`")]
    NoRoots,
    #[error("the token in `{path}` cannot be read: {reason}")]
    Token { path: String, reason: String },
    #[error("there is no valid certificate and no `--control-token` to prove who asks for one")]
    NoProof,
    #[error("a certificate cannot be asked for")]
    Request(#[source] csr::Error),
    #[error("what control sent is no identity")]
    Unusable(#[from] identity::Error),
    #[error("control sent a certificate of `{sent}` to `{own}`")]
    OtherId { own: SpiffeId, sent: SpiffeId },
    #[error("the roots that control sent cannot be read")]
    Bundle(#[source] bundle::Error),
    #[error("control sent roots of sequence {sent}, and those of {known} are in use")]
    OlderBundle { sent: u64, known: u64 },
    #[error("the state cannot be written")]
    Write(#[from] folder::Error),
    #[error("the certificate that control sent is not taken from the state folder")]
    NotTaken,
    #[error("policy cannot be looked through")]
    Stopped,
}

impl Trouble {
    /// What happened, and all that led to it.
    pub(super) fn words(&self) -> String {
        client::words(self)
    }

    /// How long control asked to be left alone.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        if let Self::Control(error) = self { error.retry_after() } else { None }
    }

    fn is_about_certificate(&self) -> bool {
        if let Self::Control(error) = self { error.is_about_certificate() } else { false }
    }
}

impl Sync {
    /// Who control is.
    pub(super) fn named(&self) -> Named {
        let id = self.config.control.id.clone();
        id.map_or(Named::Path(CONTROL_PATH), Named::Id)
    }

    /// Connects to control, showing `svid`.
    pub(super) async fn connect(&self, svid: Option<Svid>) -> Result<Client, Trouble> {
        let shown = svid.is_some();
        let Config { control, resolve, pace, wall, .. } = &self.config;
        let (host, port, resolve) = (control.host.clone(), control.port, Arc::clone(resolve));
        let target = Target { host, port, resolve, pace: *pace };
        let wall = Arc::clone(wall);
        let terms = Terms { roots: self.roots()?, named: self.named(), svid, wall };
        let connected = Client::connect(&target, &terms).await.map_err(Trouble::from);
        connected.inspect_err(|it| self.doubt(it, shown))
    }

    /// Has the token prove who we are next time, where control does not accept the
    /// certificate; and the certificate again where the token did no better.
    pub(super) fn doubt(&self, trouble: &Trouble, shown: bool) {
        let has_token = self.config.control.token.is_some();
        let by_token = shown && has_token && trouble.is_about_certificate();
        self.memory.lock().by_token = by_token && self.config.source == Source::Control;
    }

    /// The roots to know control by, those in use first.
    fn roots(&self) -> Result<Vec<Bundle>, Trouble> {
        let in_use = fs::read(self.identity_folder().join("ca.crt"));
        let mut roots: Vec<_> = in_use.iter().flat_map(|it| Bundle::from_pem(it)).collect();
        if let Some(path) = &self.config.control.roots {
            let read = fs::read(path).map_err(|it| it.to_string());
            match read.and_then(|it| Bundle::from_pem(&it).map_err(|it| it.to_string())) {
                Ok(given) => roots.push(given),
                Err(reason) if roots.is_empty() => {
                    return Err(Trouble::Roots { path: path.display().to_string(), reason });
                }
                Err(_) => (),
            }
        }
        if roots.is_empty() { Err(Trouble::NoRoots) } else { Ok(roots) }
    }

    /// The SVID in the folder, whether it is still valid or not.
    fn own(&self) -> Option<Svid> {
        let [chain, key] = folder::read(&self.identity_folder(), ["tls.crt", "tls.key"]).ok()?;
        Svid::from_pem(&chain, &key).ok()
    }

    /// The token, as it is now.
    fn token(&self) -> Result<HeaderValue, Trouble> {
        let path = self.config.control.token.as_ref().ok_or(Trouble::NoProof)?;
        let failed = |reason: String| Trouble::Token { path: path.display().to_string(), reason };
        let text = fs::read_to_string(path).map(Zeroizing::new);
        let text = text.map_err(|it| failed(it.to_string()))?;
        let token = text.lines().next().unwrap_or_default().trim();
        if token.is_empty() || TOKEN_MAX < token.len() {
            return Err(failed("its first line is empty or too long".to_owned()));
        }
        let bearer = Zeroizing::new(format!("Bearer {token}"));
        let value = HeaderValue::from_str(&bearer);
        let mut value = value.map_err(|_| failed("it is not a token".to_owned()))?;
        value.set_sensitive(true);
        Ok(value)
    }

    /// Asks for a certificate, over `client` where there is one, and writes it down.
    pub(super) async fn obtain(&self, client: Option<&Client>) -> Result<(), Trouble> {
        let (own, now) = (self.own(), (self.config.wall)());
        let by_token = self.memory.lock().by_token;
        let is_valid = |it: &Svid| it.not_before() <= now && now < it.not_after();
        let shown = own.clone().filter(|it| is_valid(it) && !by_token);
        let is_shown = shown.is_some();
        let token = if is_shown { None } else { Some(self.token()?) };
        let connected;
        let client = if let Some(client) = client.filter(|_| is_shown) {
            client
        } else {
            connected = Box::pin(self.connect(shown)).await?;
            &connected
        };
        let (csr, key) = self.request(own.as_ref().map(Svid::id))?;
        let request = SigningRequest { csr, instance: self.config.instance.clone() };
        let asking = Box::pin(client.certificate(&request, token));
        let answer = asking.await.map_err(Trouble::from);
        let signed = answer.inspect_err(|it| self.doubt(it, is_shown))?;
        self.take(&signed, &key, own.as_ref().map(Svid::id))?;
        let mut memory = self.memory.lock();
        memory.pending = None;
        memory.by_token = false;
        Ok(())
    }

    /// The request that was not answered yet, or a new one; and its key.
    fn request(&self, own: Option<&SpiffeId>) -> Result<(String, Zeroizing<String>), Trouble> {
        let mut memory = self.memory.lock();
        let pending = match memory.pending.take() {
            Some(pending) => pending,
            None => match own {
                Some(id) => csr::Request::new(id, Key::P256),
                None => csr::Request::unnamed(Key::P256),
            }
            .map_err(Trouble::Request)?,
        };
        let request = (pending.pem().to_owned(), pending.key_pem());
        memory.pending = Some(pending);
        Ok(request)
    }

    /// Examines what control answered, and writes it down.
    fn take(
        &self,
        signed: &wire::Signed,
        key: &str,
        own: Option<&SpiffeId>,
    ) -> Result<(), Trouble> {
        let (now, folder) = ((self.config.wall)(), self.identity_folder());
        let known = self.memory.lock().kept.bundle;
        let newer = known <= signed.bundle.sequence;
        // A replica may not have heard of the newest roots yet; then those in use stay.
        let roots = match (newer, fs::read_to_string(folder.join("ca.crt"))) {
            (false, Ok(in_use)) => in_use,
            (true, _) | (_, Err(_)) => signed.bundle.roots.clone(),
        };
        let material = Material::examine(&signed.chain, key, &roots, now)?;
        let sent = material.svid.id();
        if let Some(own) = own.filter(|it| *it != sent) {
            return Err(Trouble::OtherId { own: own.clone(), sent: sent.clone() });
        }
        self.write(&signed.chain, key, &roots)?;
        if newer { self.remember(&signed.bundle, &material.roots) } else { Ok(()) }
    }

    /// Takes new roots, together with the certificate in use, where they vouch for it.
    pub(super) fn trust(&self, sent: &wire::Bundle) -> Result<(), Trouble> {
        let roots = Bundle::from_pem(sent.roots.as_bytes()).map_err(Trouble::Bundle)?;
        let (known, is_same) = {
            let kept = &self.memory.lock().kept;
            (kept.bundle, kept.roots == fingerprints(&roots))
        };
        if sent.sequence < known && !is_same {
            return Err(Trouble::OlderBundle { sent: sent.sequence, known });
        }
        if self.config.source == Source::Control {
            let (now, folder) = ((self.config.wall)(), self.identity_folder());
            let [chain, key, in_use] = folder::read(&folder, ["tls.crt", "tls.key", "ca.crt"])?;
            if in_use.as_slice() != sent.roots.as_bytes() {
                let text = |it: &[u8]| Zeroizing::new(String::from_utf8_lossy(it).into_owned());
                let (chain, key) = (text(&chain), text(&key));
                Material::examine(&chain, &key, &sent.roots, now)?;
                self.write(&chain, &key, &sent.roots)?;
            }
        }
        self.remember(sent, &roots)
    }

    fn write(&self, chain: &str, key: &str, roots: &str) -> Result<(), Trouble> {
        let files = [
            File::public("tls.crt", chain),
            File::secret("tls.key", key),
            File::public("ca.crt", roots),
        ];
        Ok(folder::replace(&self.identity_folder(), &files, (self.config.wall)())?)
    }

    /// Remembers the number of the roots, which are in use by now.
    fn remember(&self, sent: &wire::Bundle, roots: &Bundle) -> Result<(), Trouble> {
        let mut memory = self.memory.lock();
        let kept = &mut memory.kept;
        let roots = fingerprints(roots);
        if (kept.bundle, &kept.roots) != (sent.sequence, &roots) {
            (kept.bundle, kept.roots) = (sent.sequence, roots);
            kept.store(&self.config.state)?;
        }
        Ok(())
    }
}

//! Retry: whether a try that failed may be followed by another, and at whose cost.
//!
//! [`verdict`] is the whole decision but for the budget, and the proxy and the simulator
//! both ask it. What it answers, in the order in which the rules are consulted:
//!
//! 1. What provably never reached the application is sent once more, whatever its method
//!    and the policy, and at no cost: no load is added where none arrived. So is what a
//!    reused connection lost before any byte of an answer, if two of it do what one does
//!    or none of its body had been given away. Unless the answer forbids it.
//! 2. What no other try can mend is final; so is everything else where the policy is off.
//! 3. An answer that forbids another try is obeyed.
//! 4. A request is sent again only if that is safe (a method of the policy, an
//!    `Idempotency-Key` the policy trusts, or never seen by the application) and possible
//!    (its body is at hand).
//! 5. A request that is a retry of somebody above us is not retried again: along a chain
//!    of hops, tries would multiply.
//! 6. A request has `1 + attempts` tries.
//! 7. Then the budget is asked.
//!
//! # Sources
//!
//! - RFC 9110, section 9.2.2: "a client SHOULD NOT automatically retry a request with a
//!   non-idempotent method unless it has some means to know that the request semantics are
//!   actually idempotent". <https://www.rfc-editor.org/rfc/rfc9110#section-9.2.2>
//! - RFC 9113, section 8.7: what was refused or is beyond a GOAWAY "has not been processed".
//! - gRPC A6: transparent retries, and pushback.
//!   <https://github.com/grpc/proposal/blob/master/A6-client-retries.md>

pub mod answer;

use std::{sync::Arc, time::Duration};

use crate::resilience::{
    Mode,
    backoff::{self, Asked},
};

/// Tries of one request that are allowed whatever the policy says, the first included.
pub const TRIES_MAX: u8 = 2;

/// What may be sent again, of one service or route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// What it does. What was never sent is sent again in any mode.
    pub mode: Mode,
    /// Tries after the first, `0..=5`.
    pub attempts: u8,
    /// Statuses that may be followed by another try, ascending; 429 only with a
    /// `Retry-After`, 501 never.
    pub codes: Arc<[u16]>,
    /// gRPC statuses that may be, one bit for each from 0 to 16.
    pub grpc_codes: u32,
    /// Methods of which two do what one does.
    pub methods: Methods,
    /// Whether a request with an `Idempotency-Key` may be sent again whatever its method.
    pub idempotency_key: bool,
    /// The wait before a retry.
    pub backoff: backoff::Config,
    /// How long one try may take; a share of what is left of the request's time where `None`.
    pub try_timeout: Option<Duration>,
}

/// How long one try may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TryTimeout {
    /// As long as the request.
    None,
    /// A share of what is left of the request's time, for each try that is left.
    Share,
    /// This long.
    At(Duration),
}

impl Policy {
    /// How long one try may take.
    ///
    /// With no word of an operator a request that is merely slow is left alone: a limit for
    /// each try would cut it, and send it again.
    pub fn try_limit(&self) -> TryTimeout {
        match self.try_timeout {
            Some(timeout) => TryTimeout::At(timeout),
            None if self.mode == Mode::Off || *self == Self::default() => TryTimeout::None,
            None => TryTimeout::Share,
        }
    }
}

/// A set of methods, as bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Methods(pub u16);

impl Methods {
    /// `GET`.
    pub const GET: Self = Self(1);
    /// `HEAD`.
    pub const HEAD: Self = Self(1 << 1);
    /// `OPTIONS`.
    pub const OPTIONS: Self = Self(1 << 2);
    /// `PUT`.
    pub const PUT: Self = Self(1 << 3);
    /// `DELETE`.
    pub const DELETE: Self = Self(1 << 4);
    /// `POST`; gRPC calls are such.
    pub const POST: Self = Self(1 << 5);
    /// `PATCH`.
    pub const PATCH: Self = Self(1 << 6);
    /// `TRACE`.
    pub const TRACE: Self = Self(1 << 7);
    /// Any method without a bit of its own, which no policy can name.
    pub const OTHER: Self = Self(1 << 15);
    /// What nobody would put an effect into: `GET`, `HEAD`, `OPTIONS`.
    pub const SAFE: Self = Self(0b111);
    /// Two do what one does: RFC 9110, section 9.2.2.
    pub const IDEMPOTENT: Self = Self::SAFE.and(Self::PUT).and(Self::DELETE).and(Self::TRACE);

    /// The set of the one method that is called so, to the letter: methods have a case.
    pub fn of(name: &str) -> Self {
        match name {
            "GET" => Self::GET,
            "HEAD" => Self::HEAD,
            "OPTIONS" => Self::OPTIONS,
            "PUT" => Self::PUT,
            "DELETE" => Self::DELETE,
            "POST" => Self::POST,
            "PATCH" => Self::PATCH,
            "TRACE" => Self::TRACE,
            _ => Self::OTHER,
        }
    }

    /// Whether all of `other` are among these.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The methods of both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            mode: Mode::Enforce,
            attempts: 2,
            // 429 only where the answer says how long to wait.
            codes: [429, 502, 503, 504].into(),
            // UNAVAILABLE: "most likely transient, can be corrected by retrying".
            grpc_codes: 1 << 14,
            methods: Methods::SAFE,
            idempotency_key: false,
            backoff: backoff::Config::default(),
            try_timeout: None,
        }
    }
}

/// What of a request decides whether it may be sent twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Its method, as the set of that one.
    pub method: Methods,
    /// Whether it has an `Idempotency-Key`.
    pub idempotency_key: bool,
    /// Whether it is itself part of a request that is being tried again.
    pub retried: bool,
}

/// What became of a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failed {
    /// None of it was sent: nobody listens, or there was no time to connect.
    Unsent,
    /// The peer says that it did not begin with it: `REFUSED_STREAM`, beyond the last
    /// stream of a GOAWAY, or a sidecar whose application took no connection.
    Unprocessed,
    /// A connection that had carried a request before broke before any byte of an answer.
    ReusedReset,
    /// The connection or stream broke in any other way before the head of an answer.
    Reset,
    /// No head of an answer within the time of one try.
    TryTimeout,
    /// An answer with this status.
    Status(u16),
    /// An answer without a message, and this gRPC status.
    Grpc(u8),
    /// Nothing that another try would mend.
    Final,
}

/// What an answer says of sending its request again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Said {
    /// Nothing.
    #[default]
    Nothing,
    /// Not to.
    Never,
    /// When to.
    After(Asked),
}

/// A try that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Try {
    /// What became of it.
    pub failed: Failed,
    /// What the answer said, where there was one.
    pub said: Said,
    /// Tries so far, this one included.
    pub tries: u8,
    /// The request can be sent again, body included.
    pub at_hand: bool,
    /// It has a body, and none of that has been given to a connection.
    pub untouched: bool,
    /// It has had its [`Verdict::Again`].
    pub again: bool,
}

/// What to do about a try that failed.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Try again at once, at no cost.
    Again,
    /// Try again if the budget has something for it.
    Ask {
        /// How long the answer asks to wait; the policy's backoff where it doesn't.
        after: Option<Asked>,
    },
    /// [`Ask`](Self::Ask), if the policy did more than observe.
    Would,
    /// Another try could do harm, or the body is gone.
    Unsafe,
    /// It has had its tries.
    Limit,
    /// Somebody above us is trying it again already.
    Chain,
    /// The answer forbids it.
    Forbidden,
    /// Nothing would be gained.
    Final,
}

/// Decides about a try that failed.
pub fn verdict(policy: &Policy, request: Request, tried: Try) -> Verdict {
    let unseen = matches!(tried.failed, Failed::Unsent | Failed::Unprocessed);
    let limit = policy.attempts.saturating_add(1);
    let free = unseen || is_harmless(request, tried);
    if free && tried.at_hand && !tried.again && tried.said != Said::Never {
        return if tried.tries < limit.max(TRIES_MAX) { Verdict::Again } else { Verdict::Limit };
    }
    if policy.mode == Mode::Off || !may_be_mended(policy, tried) {
        return Verdict::Final;
    }
    let safe = policy.methods.has(request.method)
        || policy.idempotency_key && request.idempotency_key
        || unseen;
    match tried.said {
        Said::Never => Verdict::Forbidden,
        _ if !safe || !tried.at_hand => Verdict::Unsafe,
        _ if request.retried => Verdict::Chain,
        _ if limit <= tried.tries => Verdict::Limit,
        _ if policy.mode == Mode::Observe => Verdict::Would,
        Said::Nothing => Verdict::Ask { after: None },
        Said::After(asked) => Verdict::Ask { after: Some(asked) },
    }
}

/// Whether what a reused connection lost can be sent again without asking anybody: it was
/// most likely being closed while the request was on its way.
fn is_harmless(request: Request, tried: Try) -> bool {
    let harmless = Methods::IDEMPOTENT.has(request.method) || tried.untouched;
    tried.failed == Failed::ReusedReset && harmless
}

/// Whether another endpoint, or a later moment, may do better.
fn may_be_mended(policy: &Policy, tried: Try) -> bool {
    match tried.failed {
        Failed::Unsent
        | Failed::Unprocessed
        | Failed::ReusedReset
        | Failed::Reset
        | Failed::TryTimeout => true,
        Failed::Status(501) | Failed::Final => false,
        Failed::Status(429) if !matches!(tried.said, Said::After(_)) => false,
        Failed::Status(code) => policy.codes.contains(&code),
        Failed::Grpc(code) => {
            policy.grpc_codes.checked_shr(code.into()).is_some_and(|it| it & 1 == 1)
        }
    }
}

#[cfg(test)]
mod tests;

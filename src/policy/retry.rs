//! Retry: whether a try that failed may be followed by another, with no policy at all.
//!
//! Two things are safe for anybody: to send again what was never sent, and to send again
//! what is idempotent (RFC 9110, section 9.2.2) and got no answer. Both need the request to
//! be at hand still, which one with a body is only while none of the body was taken.

/// Tries of one request, the first included.
pub const TRIES_MAX: u8 = 2;

/// What is known of a try that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts, not a state")]
pub struct Facts {
    /// Another endpoint, or a later moment, may do better.
    pub retryable: bool,
    /// The application behind the endpoint can't have seen any of the request.
    pub unseen: bool,
    /// Two of it do what one does.
    pub idempotent: bool,
    /// The request is at hand still, body included.
    pub at_hand: bool,
    /// Tries so far, this one included.
    pub tries: u8,
}

/// What to do about a try that failed.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Try again.
    Retry,
    /// Another try could do harm.
    Unsafe,
    /// It has had its tries.
    Limit,
    /// Nothing would be gained.
    Final,
}

/// Decides about a try that failed.
pub fn verdict(facts: Facts) -> Verdict {
    match facts {
        Facts { retryable: false, .. } => Verdict::Final,
        Facts { tries, .. } if tries >= TRIES_MAX => Verdict::Limit,
        Facts { at_hand: true, unseen, idempotent, .. } if unseen || idempotent => Verdict::Retry,
        _ => Verdict::Unsafe,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEEN: Facts =
        Facts { retryable: true, unseen: false, idempotent: true, at_hand: true, tries: 1 };

    #[test]
    fn what_the_application_may_have_seen_is_sent_again_only_if_idempotent() {
        assert_eq!(verdict(SEEN), Verdict::Retry);
        assert_eq!(verdict(Facts { idempotent: false, ..SEEN }), Verdict::Unsafe);
    }

    #[test]
    fn what_was_never_seen_is_sent_again_whatever_it_is() {
        assert_eq!(verdict(Facts { idempotent: false, unseen: true, ..SEEN }), Verdict::Retry);
    }

    #[test]
    fn a_request_that_is_gone_is_never_sent_again() {
        assert_eq!(verdict(Facts { at_hand: false, unseen: true, ..SEEN }), Verdict::Unsafe);
    }

    #[test]
    fn a_request_has_two_tries() {
        assert_eq!(verdict(Facts { tries: 2, ..SEEN }), Verdict::Limit);
    }

    #[test]
    fn what_cannot_get_better_is_not_tried_again() {
        assert_eq!(verdict(Facts { retryable: false, ..SEEN }), Verdict::Final);
    }
}

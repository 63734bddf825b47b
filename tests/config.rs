//! Policy documents and settings, as an operator meets them: what is accepted, what each
//! mistake says, and how a change arrives.

#![expect(clippy::needless_raw_string_hashes, reason = "UPDATE_EXPECT writes them")]

// `cfg(test)` tells clippy that helpers are tests too.
#[cfg(test)]
mod config {
    mod documents;
    mod guards;
    mod process;
    mod resilience;
    mod watching;
}

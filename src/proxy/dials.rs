//! Dials: what many callers want at once is dialled once, and all of them get what came of it.
//!
//! A dial goes on when who asked for it has gone: the next one gets it. However a dial ends,
//! panic included, nothing of it stays: the next caller dials anew.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::drain;

/// The dials that are under way, by what they are for.
#[derive(Debug)]
pub struct Dials<K, T> {
    under_way: Mutex<Vec<(K, Heard<T>)>>,
}

type Heard<T> = watch::Receiver<Option<T>>;

/// One dial, under way until dropped.
struct UnderWay<K: Copy + Eq, T> {
    dials: Arc<Dials<K, T>>,
    key: K,
    /// What came of it; none if it panicked.
    made: Option<T>,
    tell: watch::Sender<Option<T>>,
}

impl<K, T> Dials<K, T>
where
    K: Copy + Eq + Send + 'static,
    T: Clone + Send + Sync + 'static,
{
    /// What comes of the dial for `key` that is under way, or else of the one that `dial`
    /// makes; `None` if it panicked.
    ///
    /// # Cancel safety
    ///
    /// Safe: the dial goes on.
    pub async fn join<F>(self: &Arc<Self>, key: K, dial: impl FnOnce() -> F) -> Option<T>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let (mut dialled, new) = self.find(key);
        if let Some(new) = new {
            let dial = dial();
            let _running = drain::spawn("dial", async move { new.end(dial.await) });
        }
        dialled.wait_for(Option::is_some).await.ok()?.clone()
    }

    /// Where to hear of the dial for `key`, and the entry of it if it is a new one.
    fn find(self: &Arc<Self>, key: K) -> (Heard<T>, Option<UnderWay<K, T>>) {
        let mut under_way = self.under_way.lock();
        if let Some((_, dialled)) = under_way.iter().find(|(of, _)| *of == key) {
            return (dialled.clone(), None);
        }
        let (tell, dialled) = watch::channel(None);
        under_way.push((key, dialled.clone()));
        (dialled, Some(UnderWay { dials: Arc::clone(self), key, made: None, tell }))
    }
}

impl<K, T> Default for Dials<K, T> {
    fn default() -> Self {
        Self { under_way: Mutex::default() }
    }
}

impl<K: Copy + Eq, T> UnderWay<K, T> {
    fn end(mut self, made: T) {
        self.made = Some(made);
    }
}

impl<K: Copy + Eq, T> Drop for UnderWay<K, T> {
    fn drop(&mut self) {
        // Before it is told: who is told may ask for another one at once.
        self.dials.under_way.lock().retain(|(of, _)| *of != self.key);
        self.tell.send_replace(self.made.take());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn callers_at_once_share_a_dial_and_later_ones_dial_anew() {
        let (dials, made) = (Arc::<Dials<u8, usize>>::default(), AtomicUsize::new(0));
        let dial = || {
            let number = made.fetch_add(1, Ordering::Relaxed);
            async move {
                tokio::task::yield_now().await;
                number
            }
        };
        let (a, b, other) =
            tokio::join!(dials.join(1, dial), dials.join(1, dial), dials.join(2, dial));
        assert_eq!((a, b, other), (Some(0), Some(0), Some(1)));
        assert_eq!(dials.join(1, dial).await, Some(2));
        assert!(dials.under_way.lock().is_empty());
    }

    #[tokio::test]
    async fn a_dial_goes_on_when_who_asked_for_it_has_gone() {
        let (dials, gate) = (Arc::<Dials<u8, &str>>::default(), Arc::new(Notify::new()));
        let dial = || {
            let gate = Arc::clone(&gate);
            async move {
                gate.notified().await;
                "first"
            }
        };
        tokio::select! {
            biased;
            _ = dials.join(1, dial) => panic!("the gate is shut"),
            () = tokio::task::yield_now() => (),
        }
        gate.notify_one();
        assert_eq!(dials.join(1, || async { "second" }).await, Some("first"));
    }

    #[tokio::test]
    async fn a_dial_that_panics_fails_who_waits_for_it_and_nobody_after() {
        let dials = Arc::<Dials<u8, &str>>::default();
        let broken = || async {
            tokio::task::yield_now().await;
            panic!("a bug in the dial")
        };
        let (a, b) = tokio::join!(dials.join(1, broken), dials.join(1, broken));
        assert_eq!((a, b), (None, None));
        assert_eq!(dials.join(1, || async { "well" }).await, Some("well"));
    }
}

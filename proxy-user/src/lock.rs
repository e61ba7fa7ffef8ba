//! Mutexes whose holders never leave a value half changed.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks. That another holder has panicked is no reason to go down with it: what is behind the mutexes
/// of this crate is right after each statement.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

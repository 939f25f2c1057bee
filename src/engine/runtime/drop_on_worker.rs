//! Values that must be dropped on a worker, because their drop touches files.

use super::workers::Workers;
use crate::error::Error;

/// A value that is dropped on a worker. A task takes the value out and puts it back when it ends; a cancelled task does not.
pub(crate) struct DropOnWorker<T: Send + 'static> {
    pub(crate) value: Option<T>,
    pub(crate) workers: Workers,
}

impl<T: Send + 'static> DropOnWorker<T> {
    pub(crate) fn get(&self) -> Result<&T, Error> {
        self.value.as_ref().ok_or(Error::Cancelled)
    }

    pub(crate) fn get_mut(&mut self) -> Result<&mut T, Error> {
        self.value.as_mut().ok_or(Error::Cancelled)
    }

    pub(crate) fn take(&mut self) -> Result<T, Error> {
        self.value.take().ok_or(Error::Cancelled)
    }
}

impl<T: Send + 'static> Drop for DropOnWorker<T> {
    fn drop(&mut self) {
        if let Some(value) = self.value.take() {
            self.workers.discard(value);
        }
    }
}

//! Requests that wait for a runner.

use std::collections::VecDeque;

use crate::meta::Meta;
use crate::spare::{KEPT_BYTES_MAX, Spares};

thread_local! {
    /// A reader fills one, and whoever runs its last request gives it back: a connection that is idle has none.
    static SPARES: Spares<Queue> = const { Spares::new(4) };
}

/// Capacity of a queue that is kept for the next burst, in requests and in bytes: what one read brings.
const KEPT_REQUESTS_MAX: usize = 4096;
const KEPT_PARAMS_BYTES_MAX: usize = 128 << 10;

/// A request or notification that was admitted and does not run yet.
pub(super) struct Request {
    /// `None`: a notification.
    pub(super) id: Option<u32>,
    /// The number of its method.
    pub(super) number: u32,
    /// What it is charged.
    pub(super) cost: u32,
    pub(super) params: Params,
    pub(super) meta: Option<Box<Meta>>,
    pub(super) is_cancelled: bool,
}

/// Encoded arguments.
pub(super) enum Params {
    /// So many bytes of the queue's own: most are short, and lie behind one another.
    Short(u32),
    /// They go with the handler.
    Long(Box<[u8]>),
}

impl Request {
    /// One whose arguments are put behind `short`, if they are short.
    #[inline]
    pub(super) fn new(
        id: Option<u32>,
        number: u32,
        cost: usize,
        params: &[u8],
        short: &mut Vec<u8>,
        meta: Option<Box<Meta>>,
    ) -> Self {
        let params = match params.len() <= KEPT_BYTES_MAX {
            true => {
                short.extend_from_slice(params);
                Params::Short(params.len() as u32)
            }
            false => Params::Long(params.into()),
        };
        let cost = u32::try_from(cost).unwrap_or(u32::MAX);
        Self { id, number, cost, params, meta, is_cancelled: false }
    }
}

/// Requests in the order in which they came.
#[derive(Default)]
pub(super) struct Queue {
    requests: VecDeque<Request>,
    /// The short arguments of all of them, behind those of `taken` bytes.
    params: Vec<u8>,
    taken: usize,
    /// The number of the first one; that of the next is larger by one.
    first: u32,
}

impl Queue {
    /// An empty one, with the room of one that was used before.
    #[inline]
    pub(super) fn spare() -> Self {
        SPARES.try_with(Spares::take).ok().flatten().unwrap_or_default()
    }

    /// Keeps an empty one's room for the next.
    #[inline]
    pub(super) fn keep(self) {
        let is_kept = self.requests.capacity() <= KEPT_REQUESTS_MAX && self.params.capacity() <= KEPT_PARAMS_BYTES_MAX;
        if is_kept && self.requests.capacity() > 0 {
            // While the locals of a thread are destroyed nothing more is kept.
            let _ = SPARES.try_with(|spares| spares.keep(self));
        }
    }

    pub(super) fn len(&self) -> usize {
        self.requests.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// The numbers of the requests that are appended next.
    pub(super) fn numbers_to_come(&self) -> impl Iterator<Item = u32> + use<> {
        let end = self.first.wrapping_add(self.requests.len() as u32);
        (0..u32::MAX).map(move |n| end.wrapping_add(n))
    }

    #[inline]
    pub(super) fn push(&mut self, id: Option<u32>, number: u32, cost: usize, params: &[u8], meta: Option<Box<Meta>>) {
        self.requests.push_back(Request::new(id, number, cost, params, &mut self.params, meta));
    }

    /// As [`push`](Self::push) of one that was not, whose arguments are `params` if they are short.
    pub(super) fn push_request(&mut self, request: Request, params: &[u8]) {
        self.params.extend_from_slice(params);
        self.requests.push_back(request);
    }

    /// Takes the first one, and leaves its arguments in `params` if they are short.
    #[inline]
    pub(super) fn pop(&mut self, params: &mut Vec<u8>) -> Option<Request> {
        let request = self.requests.pop_front()?;
        self.first = self.first.wrapping_add(1);
        params.clear();
        if let Params::Short(len) = request.params {
            let end = self.taken + len as usize;
            params.extend_from_slice(&self.params[self.taken..end]);
            self.taken = end;
        }
        if self.requests.is_empty() {
            self.params.clear();
            self.taken = 0;
        }
        Some(request)
    }

    /// Takes over all of another one's.
    pub(super) fn append(&mut self, other: &mut Self) {
        if other.is_empty() {
            return;
        }
        if self.is_empty() {
            std::mem::swap(&mut self.requests, &mut other.requests);
            std::mem::swap(&mut self.params, &mut other.params);
            return;
        }
        // Each byte is moved once more at most.
        if self.taken > self.params.len() / 2 {
            self.params.drain(..self.taken);
            self.taken = 0;
        }
        self.requests.append(&mut other.requests);
        self.params.append(&mut other.params);
    }

    /// Flags the request with this number.
    pub(super) fn cancel(&mut self, number: u32) {
        if let Some(request) = self.requests.get_mut(number.wrapping_sub(self.first) as usize) {
            request.is_cancelled = true;
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Request> {
        self.requests.iter()
    }

    pub(super) fn iter_mut(&mut self) -> impl DoubleEndedIterator<Item = &mut Request> {
        self.requests.iter_mut()
    }

    /// Takes all out, but for notifications if they shall stay.
    pub(super) fn forget(&mut self, keeps_notifications: bool) -> Vec<Request> {
        let (mut kept, mut params, mut forgotten) = (Self::default(), Vec::new(), Vec::new());
        while let Some(request) = self.pop(&mut params) {
            if keeps_notifications && request.id.is_none() {
                kept.params.append(&mut params);
                kept.requests.push_back(request);
            } else {
                forgotten.push(request);
            }
        }
        *self = kept;
        forgotten
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(queue: &mut Queue, id: u32, len: usize) {
        let params: Vec<u8> = (0..len).map(|n| (n as u32 + id) as u8).collect();
        queue.push(Some(id).filter(|id| id % 3 > 0), id, 1, &params, None);
    }

    /// Takes one out and looks at all of it.
    fn check(queue: &mut Queue, id: u32, len: usize) {
        let mut short = Vec::new();
        let request = queue.pop(&mut short).expect("it was pushed");
        let params = match &request.params {
            Params::Short(_) => &short[..],
            Params::Long(params) => params,
        };
        let expected: Vec<u8> = (0..len).map(|n| (n as u32 + id) as u8).collect();
        assert_eq!((request.number, params), (id, &expected[..]));
    }

    const LENGTHS: [usize; 7] = [0, 1, KEPT_BYTES_MAX, KEPT_BYTES_MAX + 1, 10_000, 7, 0];

    #[test]
    fn arguments_of_any_length_come_out_as_they_went_in() {
        let (mut queue, mut pushed, mut popped) = (Queue::default(), 0, 0);
        for burst in [1, 7, 3, 50, 0, 2] {
            let mut batch = Queue::default();
            for _ in 0..burst {
                push(&mut batch, pushed, LENGTHS[pushed as usize % 7]);
                pushed += 1;
            }
            queue.append(&mut batch);
            for _ in 0..(pushed - popped) * 2 / 3 {
                check(&mut queue, popped, LENGTHS[popped as usize % 7]);
                popped += 1;
            }
        }
        (popped..pushed).for_each(|id| check(&mut queue, id, LENGTHS[id as usize % 7]));
        assert!(queue.is_empty() && queue.params.is_empty());
    }

    #[test]
    fn bytes_that_were_taken_are_not_kept_for_good() {
        let mut queue = Queue::default();
        push(&mut queue, 0, 100);
        for id in 1..10_000 {
            let mut batch = Queue::default();
            push(&mut batch, id, 100);
            queue.append(&mut batch);
            check(&mut queue, id - 1, 100);
        }
        assert!(queue.params.len() <= 400, "{} bytes are kept for one request", queue.params.len());
    }

    #[test]
    fn notifications_stay_when_the_requests_are_taken_out() {
        let mut queue = Queue::default();
        (0..10).for_each(|id| push(&mut queue, id, LENGTHS[id as usize % 7]));
        assert_eq!(queue.forget(true).len(), 6);
        [0, 3, 6, 9].into_iter().for_each(|id| check(&mut queue, id, LENGTHS[id as usize % 7]));
    }

    #[test]
    fn a_request_is_found_by_its_number() {
        let mut queue = Queue::default();
        (0..5).for_each(|id| push(&mut queue, id, 1));
        check(&mut queue, 0, 1);
        let mut batch = Queue::default();
        push(&mut batch, 5, 1);
        let number = queue.numbers_to_come().next().expect("they do not end");
        queue.append(&mut batch);
        queue.cancel(number);
        let flagged: Vec<_> = queue.iter().filter(|request| request.is_cancelled).map(|r| r.number).collect();
        assert_eq!(flagged, [5]);
    }
}

//! The first of several events.
//!
//! [`select!`](crate::select!) is for events that are known when the program is written, and [`Select`] for a number of them
//! that only turns out as it runs.

mod join;

use std::time::{Duration, Instant};

use self::join::Join;
pub use self::join::Joinable;
use crate::net::Socket;
use crate::net::ready::Ready;
use crate::park::Interrupt;
use crate::sync::channel::{Receiver, RecvError, SendError, Sender};
use crate::sync::oneshot;
use crate::sync::select::{self, Arm, Event, Once, Order, Recv, Send, Timer};

/// Waits for the first of several events, and runs the arm that belongs to it. Its value is the arm's.
///
/// ```text
/// dhaga::select! {
///     biased;                             // optional: if several are ready, the first of them; otherwise any
///     recv(receiver) -> result => …,      // Result<T, RecvError>
///     send(sender, value) -> result => …, // Result<(), SendError<T>>; the value is dropped if another arm runs
///     send_from(sender, place) -> result => …, // place: Option<T>, which keeps the value if another arm runs
///     oneshot(receiver) -> result => …,   // Result<T, RecvError>
///     join(handle) -> result => …,        // handle: Option<JoinHandle<T>>, or of a scope; Result<T, JoinError<T>>
///     readable(socket) => …,              // a listener or a stream: `accept` or `read` would not wait now
///     writable(socket) => …,
///     after(duration) => …,               // counted from here
///     at(instant) => …,
///     recv(other) -> result, if is_open => …, // every arm but the next two may have a condition
///     default => …,                       // nothing is ready now: the select never waits
///     interrupted(why) => …,              // the scope is cancelled or out of time
/// }
/// ```
///
/// It parks a dhaga and blocks a plain thread, spawns nothing, and allocates nothing (save that a plain thread which waits
/// for sockets makes a list of them). A message goes to a select only if the arm for it runs, so none is lost; and none is
/// taken when another arm does. The conditions and what stands in parentheses are evaluated once, in their order, before the
/// wait; where a condition is false, what it guards is not evaluated, and its arm never runs. Nor does a `send_from` or
/// `join` arm whose `Option` is `None`. If no arm can run, the select waits for its interruption.
///
/// `recv`, `send`, `readable` and `writable` borrow what they name, the rest of the `Option`s and the oneshot mutably, until
/// an arm is chosen; the arm may use them again. If `handle` is a `&mut Option<…>`, write `join(*handle)`.
///
/// If several events are ready, one of them is chosen by chance, so that none is kept out by others. A channel whose other
/// side is gone is ready, and stays so: in a loop, turn its arm off by a condition.
///
/// After `readable` and `writable` the arm tries for itself. Where several wait for one socket, another may be faster, and
/// the arm would wait then.
///
/// # Errors
///
/// A select that may wait ends when the scope around it is cancelled or out of time, or if its thread unwinds from a panic
/// and nothing is ready. Then `interrupted` runs. If there is no such arm, the first `recv`, `send` or `oneshot` arm without a
/// condition runs, with the `Interrupted` that the operation would return by itself, so that a `?` passes it up. A `send_from`
/// arm never does: its place may be empty, and that error has a message inside. If there is none of these either, it does not
/// compile. With `default` a select does not wait, and so is never interrupted.
///
/// # Panics
///
/// Where no dhaga runs on a worker's thread, as every wait.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use dhaga::sync::channel::{self, RecvError};
///
/// let (jobs, new_jobs) = channel::bounded(8);
/// let (results, finished) = channel::unbounded();
/// let (stop, stopped) = dhaga::sync::oneshot::channel::<()>();
/// let worker = dhaga::spawn(move || {
///     let mut stopped = stopped;
///     loop {
///         dhaga::select! {
///             recv(new_jobs) -> job => drop(results.send(2 * job?)),
///             oneshot(stopped) -> _ => return Ok::<_, RecvError>("stopped"),
///             after(Duration::from_secs(60)) => return Ok("nothing to do"),
///         }
///     }
/// });
/// jobs.send(21)?;
/// assert_eq!(finished.recv(), Ok(42));
/// drop(stop);
/// assert_eq!(worker.join()??, "stopped");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// A server that ends when it is told to:
///
/// ```
/// # use dhaga::sync::channel::{self, RecvError};
/// fn serve(listener: &dhaga::net::TcpListener, stop: &channel::Receiver<()>) -> std::io::Result<usize> {
///     let mut connections = 0;
///     loop {
///         dhaga::select! {
///             readable(listener) => {
///                 let (_stream, _address) = listener.accept()?;
///                 connections += 1;
///             }
///             recv(stop) -> _ => return Ok(connections),
///         }
///     }
/// }
/// # let listener = dhaga::net::TcpListener::bind("127.0.0.1:0")?;
/// # let (stop, stopped) = channel::unbounded();
/// # drop(stop);
/// # assert_eq!(serve(&listener, &stopped)?, 0);
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// Nothing here could tell of an interruption, so it must be said what happens then:
///
/// ```compile_fail
/// # let listener = dhaga::net::TcpListener::bind("127.0.0.1:0").unwrap();
/// dhaga::select! {
///     readable(listener) => {}
/// }
/// ```
#[macro_export]
macro_rules! select {
    (biased; $($arms:tt)*) => {
        $crate::__select!(@parse Biased () () [] [] $($arms)*)
    };
    ($($arms:tt)*) => {
        $crate::__select!(@parse Fair () () [] [] $($arms)*)
    };
}

/// The steps of [`select!`](crate::select!).
///
/// ```text
///   @parse ORDER (DEFAULT) (INTERRUPTED) [who can report an interruption] [arms so far] the rest
///   @arm   KIND (ARGUMENTS) (PATTERN) (CONDITION) {BODY}  and all of the above
///   @begin NAME KIND (ARGUMENTS) (CONDITION)              makes the event of an arm
/// ```
///
/// Each arm's name is `arm`, of the step that has read it, so they differ from each other and from all names of the caller.
#[doc(hidden)]
#[macro_export]
macro_rules! __select {
    (@parse $order:ident $default:tt $interrupted:tt $reporters:tt [$($arms:tt)*]) => {
        $crate::__select!(@expand $order $default $interrupted $reporters [$($arms)*])
    };
    (@parse $order:ident $default:tt $interrupted:tt $reporters:tt $arms:tt , $($rest:tt)*) => {
        $crate::__select!(@parse $order $default $interrupted $reporters $arms $($rest)*)
    };
    (@parse $order:ident () $interrupted:tt $reporters:tt $arms:tt default => $body:block $($rest:tt)*) => {
        $crate::__select!(@parse $order ($body) $interrupted $reporters $arms $($rest)*)
    };
    (@parse $order:ident () $interrupted:tt $reporters:tt $arms:tt default => $body:expr $(, $($rest:tt)*)?) => {
        $crate::__select!(@parse $order ($body) $interrupted $reporters $arms $($($rest)*)?)
    };
    (@parse $order:ident $default:tt () $reporters:tt $arms:tt
        interrupted($why:pat) => $body:block $($rest:tt)*) => {
        $crate::__select!(@parse $order $default ($why, $body) $reporters $arms $($rest)*)
    };
    (@parse $order:ident $default:tt () $reporters:tt $arms:tt
        interrupted($why:pat) => $body:expr $(, $($rest:tt)*)?) => {
        $crate::__select!(@parse $order $default ($why, $body) $reporters $arms $($($rest)*)?)
    };
    (@parse $order:ident $default:tt $interrupted:tt $reporters:tt $arms:tt
        $kind:ident $arguments:tt $(-> $outcome:pat)? $(, if $condition:expr)? => $body:block $($rest:tt)*) => {
        $crate::__select!(@arm $kind $arguments ($($outcome)?) ($($condition)?) {$body}
            $order $default $interrupted $reporters $arms $($rest)*)
    };
    (@parse $order:ident $default:tt $interrupted:tt $reporters:tt $arms:tt
        $kind:ident $arguments:tt $(-> $outcome:pat)? $(, if $condition:expr)? => $body:expr $(, $($rest:tt)*)?) => {
        $crate::__select!(@arm $kind $arguments ($($outcome)?) ($($condition)?) {$body}
            $order $default $interrupted $reporters $arms $($($rest)*)?)
    };
    (@parse $order:ident $default:tt $interrupted:tt $reporters:tt $arms:tt $($rest:tt)*) => {
        ::core::compile_error!(::core::concat!(
            "not an arm of `select!`, such as `recv(receiver) -> message => …`, or a second `default` or `interrupted`: ",
            ::core::stringify!($($rest)*)
        ))
    };

    (@arm recv $arguments:tt ($outcome:pat) () $($rest:tt)*) => {
        $crate::__select!(@reporter recv $arguments ($outcome) $($rest)*)
    };
    (@arm send $arguments:tt ($outcome:pat) () $($rest:tt)*) => {
        $crate::__select!(@reporter send $arguments ($outcome) $($rest)*)
    };
    (@arm oneshot $arguments:tt ($outcome:pat) () $($rest:tt)*) => {
        $crate::__select!(@reporter oneshot $arguments ($outcome) $($rest)*)
    };
    (@arm readable $arguments:tt () $($rest:tt)*) => {
        $crate::__select!(@other readable $arguments (_) $($rest)*)
    };
    (@arm writable $arguments:tt () $($rest:tt)*) => {
        $crate::__select!(@other writable $arguments (_) $($rest)*)
    };
    (@arm after $arguments:tt () $($rest:tt)*) => {
        $crate::__select!(@other after $arguments (_) $($rest)*)
    };
    (@arm at $arguments:tt () $($rest:tt)*) => {
        $crate::__select!(@other at $arguments (_) $($rest)*)
    };
    (@arm $kind:ident $arguments:tt () $($rest:tt)*) => {
        ::core::compile_error!(::core::concat!(
            "`select!` has no arm `", ::core::stringify!($kind), "`, or its result would be lost: name it, as in `",
            ::core::stringify!($kind), "(…) -> result => …`"
        ))
    };
    (@arm $kind:ident $arguments:tt ($outcome:pat) $($rest:tt)*) => {
        $crate::__select!(@other $kind $arguments ($outcome) $($rest)*)
    };

    (@reporter $kind:ident $arguments:tt ($outcome:pat) {$body:expr}
        $order:ident $default:tt $interrupted:tt [$($reporters:ident)*] [$($arms:tt)*] $($rest:tt)*) => {
        $crate::__select!(@parse $order $default $interrupted [$($reporters)* arm]
            [$($arms)* {arm $kind $arguments () ($outcome) {$body}}] $($rest)*)
    };
    (@other $kind:ident $arguments:tt ($outcome:pat) $condition:tt {$body:expr}
        $order:ident $default:tt $interrupted:tt $reporters:tt [$($arms:tt)*] $($rest:tt)*) => {
        $crate::__select!(@parse $order $default $interrupted $reporters
            [$($arms)* {arm $kind $arguments $condition ($outcome) {$body}}] $($rest)*)
    };

    (@expand $order:ident ($default:expr) () $reporters:tt []) => {
        $default
    };
    (@expand $order:ident ($default:expr) () $reporters:tt
        [$({$arm:ident $kind:ident $arguments:tt $condition:tt ($outcome:pat) {$body:expr}})*]) => {{
        let ($($arm,)*) = {
            $($crate::__select!(@begin $arm $kind $arguments $condition);)*
            $crate::select::expand::attempt(
                [$($crate::select::expand::erase(&mut $arm)),*],
                $crate::select::expand::Order::$order,
            );
            ($($crate::select::expand::outcome(&mut $arm),)*)
        };
        $(if let ::core::option::Option::Some(outcome) = $arm { let $outcome = outcome; $body } else)*
        { $default }
    }};
    (@expand $order:ident ($default:expr) $interrupted:tt $reporters:tt $arms:tt) => {
        ::core::compile_error!("a `select!` with `default` never waits, and so is never interrupted: remove one of the two")
    };
    (@expand $order:ident () ($why:pat, $interrupted:expr) $reporters:tt
        [$({$arm:ident $kind:ident $arguments:tt $condition:tt ($outcome:pat) {$body:expr}})*]) => {{
        let (interrupt, $($arm,)*) = {
            $($crate::__select!(@begin $arm $kind $arguments $condition);)*
            let waited = $crate::select::expand::wait(
                [$($crate::select::expand::erase(&mut $arm)),*],
                $crate::select::expand::Order::$order,
            );
            (waited.err(), $($crate::select::expand::outcome(&mut $arm),)*)
        };
        if let ::core::option::Option::Some(interrupt) = interrupt { let $why = interrupt; $interrupted } else
        $(if let ::core::option::Option::Some(outcome) = $arm { let $outcome = outcome; $body } else)*
        { ::core::unreachable!("one of the arms is chosen") }
    }};
    (@expand $order:ident () () [$reporter:ident $($reporters:ident)*]
        [$({$arm:ident $kind:ident $arguments:tt $condition:tt ($outcome:pat) {$body:expr}})*]) => {{
        let ($($arm,)*) = {
            $($crate::__select!(@begin $arm $kind $arguments $condition);)*
            let waited = $crate::select::expand::wait(
                [$($crate::select::expand::erase(&mut $arm)),*],
                $crate::select::expand::Order::$order,
            );
            if let ::core::result::Result::Err(interrupt) = waited {
                $reporter.interrupt(interrupt);
            }
            ($($crate::select::expand::outcome(&mut $arm),)*)
        };
        $(if let ::core::option::Option::Some(outcome) = $arm { let $outcome = outcome; $body } else)*
        { ::core::unreachable!("one of the arms is chosen") }
    }};
    (@expand $order:ident () () [] $arms:tt) => {
        ::core::compile_error!(
            "this `select!` may wait, and none of its arms can tell that the scope was cancelled or is out of time: add \
             `interrupted(why) => …`, or `default => …` if it is not to wait"
        )
    };

    (@begin $arm:ident recv ($receiver:expr $(,)?) $condition:tt) => {
        $crate::__select!(@let $arm $condition $crate::select::expand::Recv::new, &$receiver);
    };
    (@begin $arm:ident oneshot ($receiver:expr $(,)?) $condition:tt) => {
        $crate::__select!(@let $arm $condition $crate::select::expand::Once::new, &mut $receiver);
    };
    (@begin $arm:ident send ($sender:expr, $message:expr $(,)?) $condition:tt) => {
        let mut message = ::core::option::Option::None;
        $crate::__select!(@let $arm $condition $crate::select::expand::Send::new, &$sender, {
            message = ::core::option::Option::Some($message);
            &mut message
        });
    };
    (@begin $arm:ident send_from ($sender:expr, $message:expr $(,)?) $condition:tt) => {
        $crate::__select!(@let $arm $condition $crate::select::expand::Send::new, &$sender, &mut $message);
    };
    (@begin $arm:ident join ($handle:expr $(,)?) $condition:tt) => {
        $crate::__select!(@let $arm $condition $crate::select::expand::Join::new, &mut $handle);
    };
    (@begin $arm:ident readable ($socket:expr $(,)?) $condition:tt) => {
        $crate::__select!(@let $arm $condition $crate::select::expand::Ready::to_read, &$socket);
    };
    (@begin $arm:ident writable ($socket:expr $(,)?) $condition:tt) => {
        $crate::__select!(@let $arm $condition $crate::select::expand::Ready::to_write, &$socket);
    };
    (@begin $arm:ident after ($duration:expr $(,)?) $condition:tt) => {
        $crate::__select!(@let $arm $condition $crate::select::expand::Timer::after, $duration);
    };
    (@begin $arm:ident at ($instant:expr $(,)?) $condition:tt) => {
        $crate::__select!(@let $arm $condition $crate::select::expand::Timer::at, $instant);
    };
    (@begin $arm:ident $kind:ident $arguments:tt $condition:tt) => {
        ::core::compile_error!(::core::concat!(
            "`select!` has no arm `", ::core::stringify!($kind $arguments), "`"
        ));
    };

    // Bound to a name first, what the caller has not bound to one lives as long as the wait.
    (@let $arm:ident () $event:path, $subject:expr $(, $with:expr)?) => {
        let subject = $subject;
        let mut $arm = $event(subject $(, $with)?);
    };
    (@let $arm:ident ($condition:expr) $event:path, $subject:expr $(, $with:expr)?) => {
        let mut $arm = if $condition {
            ::core::option::Option::Some($event($subject $(, $with)?))
        } else {
            ::core::option::Option::None
        };
    };
}

/// What `select!` is made of.
#[doc(hidden)]
pub mod expand {
    use super::*;

    pub use super::join::Join;
    pub use crate::net::ready::Ready;
    pub use crate::sync::select::{Once, Order, Recv, Send, Timer};

    /// The event of an arm, whatever comes of it.
    pub struct Erased<'a>(&'a mut dyn Event);

    pub fn erase<A: Arm>(arm: &mut A) -> Erased<'_> {
        Erased(arm)
    }

    pub fn wait<const ARMS: usize>(arms: [Erased<'_>; ARMS], order: Order) -> Result<(), Interrupt> {
        select::wait(&mut arms.map(|arm| arm.0), order)
    }

    pub fn attempt<const ARMS: usize>(arms: [Erased<'_>; ARMS], order: Order) {
        select::attempt(&mut arms.map(|arm| arm.0), order);
    }

    pub fn outcome<A: Arm>(arm: &mut A) -> Option<A::Outcome> {
        arm.outcome()
    }
}

/// Waits for the first of several events whose number is known only as the program runs. Each has a closure, and the result
/// of a wait is that of the closure whose event came first.
///
/// It behaves as [`select!`](crate::select!), whose documentation says what each event is. An event that is added is boxed;
/// waiting makes one list. It may be used again and again.
///
/// # Examples
///
/// ```
/// use dhaga::select::Select;
/// use dhaga::sync::channel;
///
/// let (senders, receivers): (Vec<_>, Vec<_>) = (0..5).map(|_| channel::bounded(1)).unzip();
/// senders[3].send("hello")?;
/// let mut select = Select::new();
/// for (index, receiver) in receivers.iter().enumerate() {
///     select.recv(receiver, move |message| message.map(|message| (index, message)));
/// }
/// assert_eq!(select.wait()??, (3, "hello"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Select<'a, R> {
    arms: Vec<Box<dyn Case<R> + 'a>>,
    order: Order,
}

impl<'a, R> Select<'a, R> {
    /// No events. If several are ready, any of them is chosen.
    pub fn new() -> Self {
        Self { arms: Vec::new(), order: Order::Fair }
    }

    /// No events. If several are ready, the one that was added first is chosen.
    pub fn biased() -> Self {
        Self { arms: Vec::new(), order: Order::Biased }
    }

    /// Adds: to receive from a channel.
    pub fn recv<T>(&mut self, receiver: &'a Receiver<T>, then: impl FnMut(Result<T, RecvError>) -> R + 'a) {
        self.add(Recv::new(receiver), then);
    }

    /// Adds: to send to a channel. The message stays in its place unless it is sent, and without a message nothing is.
    pub fn send<T>(
        &mut self,
        sender: &'a Sender<T>,
        message: &'a mut Option<T>,
        then: impl FnMut(Result<(), SendError<T>>) -> R + 'a,
    ) {
        self.add(Send::new(sender, message), then);
    }

    /// Adds: to receive from a oneshot.
    pub fn oneshot<T>(
        &mut self,
        receiver: &'a mut oneshot::Receiver<T>,
        then: impl FnMut(Result<T, RecvError>) -> R + 'a,
    ) {
        self.add(Once::new(receiver), then);
    }

    /// Adds: the end of a dhaga. The handle stays in its place until then.
    pub fn join<H: Joinable>(&mut self, handle: &'a mut Option<H>, then: impl FnMut(H::Outcome) -> R + 'a) {
        self.add(Join::new(handle), then);
    }

    /// Adds: a socket to become readable.
    pub fn readable(&mut self, socket: &'a impl Socket, mut then: impl FnMut() -> R + 'a) {
        self.add(Ready::to_read(socket), move |()| then());
    }

    /// Adds: a socket to become writable.
    pub fn writable(&mut self, socket: &'a impl Socket, mut then: impl FnMut() -> R + 'a) {
        self.add(Ready::to_write(socket), move |()| then());
    }

    /// Adds: `duration` from the beginning of each wait.
    pub fn after(&mut self, duration: Duration, mut then: impl FnMut() -> R + 'a) {
        self.add(Timer::after(duration), move |()| then());
    }

    /// Adds: an instant.
    pub fn at(&mut self, instant: Instant, mut then: impl FnMut() -> R + 'a) {
        self.add(Timer::at(instant), move |()| then());
    }

    fn add<A: Arm + 'a>(&mut self, arm: A, then: impl FnMut(A::Outcome) -> R + 'a) {
        self.arms.push(Box::new(Then { arm, then }));
    }

    /// Waits for the first of the events, and calls its closure.
    ///
    /// # Errors
    ///
    /// If the scope is cancelled or out of time, or the thread unwinds from a panic and nothing is ready. Then no event has
    /// happened.
    pub fn wait(&mut self) -> Result<R, Interrupt> {
        let mut events: Vec<_> = self.arms.iter_mut().map(|arm| arm.event()).collect();
        select::wait(&mut events, self.order)?;
        Ok(self.finish().expect("one of the events has happened"))
    }

    /// Calls the closure of an event that is ready. Never suspends; `None` if none is.
    pub fn try_wait(&mut self) -> Option<R> {
        let mut events: Vec<_> = self.arms.iter_mut().map(|arm| arm.event()).collect();
        select::attempt(&mut events, self.order);
        self.finish()
    }

    fn finish(&mut self) -> Option<R> {
        self.arms.iter_mut().find_map(|arm| arm.finish())
    }
}

impl<R> Default for Select<'_, R> {
    fn default() -> Self {
        Self::new()
    }
}

impl<R> std::fmt::Debug for Select<'_, R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Select").field("events", &self.arms.len()).field("order", &self.order).finish()
    }
}

/// An event and what follows, whatever comes of it.
trait Case<R> {
    fn event(&mut self) -> &mut dyn Event;
    /// Calls the closure, if the event has happened.
    fn finish(&mut self) -> Option<R>;
}

struct Then<A, F> {
    arm: A,
    then: F,
}

impl<R, A: Arm, F: FnMut(A::Outcome) -> R> Case<R> for Then<A, F> {
    fn event(&mut self) -> &mut dyn Event {
        &mut self.arm
    }

    fn finish(&mut self) -> Option<R> {
        self.arm.outcome().map(&mut self.then)
    }
}

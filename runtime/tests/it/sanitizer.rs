//! AddressSanitizer sees into the stacks of dhagas: otherwise it would pass whatever we do.

use dhaga::Runtime;

use crate::child;

/// The address of a value that is gone. A frame of its own: the sanitizer does not watch the return of a frame into which
/// assembler was inlined, and that is the case of every frame that waits.
#[inline(never)]
fn dangling() -> usize {
    #[inline(never)]
    fn address(bytes: &[u8; 64]) -> usize {
        bytes.as_ptr().expose_provenance()
    }
    let local = [7; 64];
    address(&local)
}

#[test]
fn a_read_of_the_stack_of_a_dhaga_that_has_ended_is_found() {
    let test = child::name_of!(a_read_of_the_stack_of_a_dhaga_that_has_ended_is_found);
    let output = child::run(test, || {
        let runtime = Runtime::builder().workers(1).build().expect("a test can start a runtime");
        let ended = runtime.spawn(|| {
            dhaga::yield_now();
            let address = dangling();
            dhaga::yield_now();
            address
        });
        let address = ended.join().expect("it ends well");
        let reads = runtime.spawn(move || {
            // SAFETY: there is none: the frame has gone, which is what shall be found. The memory is a stack of the runtime's
            // or one of the sanitizer's, so that the read hits nothing but itself.
            unsafe { std::ptr::with_exposed_provenance::<u8>(address).read_volatile() }
        });
        println!("read {}", reads.join().expect("it ends well"));
    });
    let Some(output) = output else { return };
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains("ERROR: AddressSanitizer: stack-use-after"), "{output:?}");
}

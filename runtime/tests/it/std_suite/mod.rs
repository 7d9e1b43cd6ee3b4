//! What std's sockets answer, ours answer: one body of code for both, and one transcript of the answers.
//!
//! A case notes what it is told, errors with their kind and number. It runs four times, see [`compare`], and each time the
//! transcript must be that of std's sockets. What differs for a reason lies in `differences`, and in `docs/porting.md`.
//!
//! `of_std` and `of_dhaga` are the same files over two sets of types. Streams are generic: each of their cases is run over
//! TCP and over a Unix socket. Below is the table of all cases.

mod differences;
mod of_dhaga;
mod of_std;
mod run;

use run::compare;

/// Makes a test of each case.
macro_rules! cases {
    ($($file:ident: $($case:ident)*;)*) => {
        $(mod $file {
            $(#[test]
            fn $case() {
                super::compare(super::of_std::$file::$case, super::of_dhaga::$file::$case);
            })*
        })*
    };
}

/// Makes two tests of each case: over TCP, and over a Unix socket.
macro_rules! stream_cases {
    ($($case:ident)*) => {
        mod tcp_streams {
            use super::{of_dhaga, of_std};

            $(#[test]
            fn $case() {
                type Std = std::net::TcpStream;
                super::compare(of_std::streams::$case::<Std>, of_dhaga::streams::$case::<dhaga::net::TcpStream>);
            })*
        }

        mod unix_streams {
            use super::{of_dhaga, of_std};

            $(#[test]
            fn $case() {
                type Std = std::os::unix::net::UnixStream;
                super::compare(of_std::streams::$case::<Std>, of_dhaga::streams::$case::<dhaga::net::UnixStream>);
            })*
        }
    };
}

stream_cases! {
    // Reading and writing.
    bytes_arrive_in_order
    an_end_is_told_again_and_again
    nothing_is_read_into_nothing
    nothing_is_written
    nothing_is_written_to_a_full_socket
    more_is_written_than_buffers_hold
    too_little_is_an_unexpected_end
    what_is_no_text_is_invalid_data
    lines_are_cut
    a_buffered_writer_writes_when_it_goes
    all_is_copied_back
    a_part_is_taken
    both_ways_at_once
    // Vectored.
    slices_are_gathered_and_scattered
    no_slices_and_empty_ones
    more_slices_than_the_kernel_takes
    many_large_slices
    // The ends.
    a_request_ends_and_its_answer_comes
    a_half_shut_for_writing
    a_half_shut_for_reading
    both_halves_shut
    a_shutdown_told_twice
    who_is_dropped_ends
    a_peer_that_leaves_bytes_unread_resets
    a_reset_while_waiting
    an_error_is_taken_once
    // Timeouts and modes.
    a_read_timeout_is_over
    a_write_timeout_is_over
    timeouts_are_kept
    timeouts_of_zero_are_refused
    timeouts_without_end
    timeouts_are_shared_by_clones
    a_non_blocking_stream_never_waits
    a_mode_is_shared_by_clones
    // Handles.
    clones_share_the_position
    a_clone_keeps_the_stream_open
    a_shutdown_reaches_all_clones
    descriptors_are_handed_on
    what_is_printed
}

cases! {
    tcp:
        // Addresses.
        addresses_of_a_connection
        addresses_after_the_end
        addresses_of_version_6
        addresses_of_version_4_in_version_6
        unspecified_is_this_host
        addresses_that_cannot_be_had
        links_need_a_scope
        no_address_at_all
        the_second_address_is_taken
        nobody_listens
        // Connections.
        a_peek_takes_nothing
        a_peek_does_not_wait_for_ever
        a_peek_sees_the_end
        what_is_urgent_hides_nothing
        options_of_streams
        options_out_of_range
        shared_references_read_and_write
        // Listeners.
        a_listener_accepts_in_order
        a_non_blocking_listener_never_waits
        the_mode_of_a_listener_is_not_inherited
        clones_of_a_listener_share_the_queue
        a_listener_that_goes_refuses
        a_listener_of_another_version
        options_of_listeners
        what_a_listener_prints
    ;
    udp:
        // Datagrams.
        a_datagram_and_its_answer
        what_has_no_room_is_lost
        empty_datagrams_arrive
        the_longest_datagram_arrives
        a_peek_takes_nothing
        // Connected.
        to_send_needs_an_address
        who_is_connected_hears_one
        who_is_connected_may_send_elsewhere
        nobody_is_there
        // Addresses.
        addresses_that_cannot_be_had
        addresses_of_version_6
        addresses_of_the_wrong_version
        // Timeouts, modes, options.
        timeouts_are_over
        timeouts_of_zero_are_refused
        a_non_blocking_socket_never_waits
        options_are_kept
        options_out_of_range
        to_all_needs_permission
        groups_are_joined_and_left
        a_group_hears
        // Handles.
        clones_share_the_queue
        descriptors_are_handed_on
        what_is_printed
    ;
    unix:
        // Addresses.
        addresses_with_a_path
        addresses_with_a_name
        addresses_of_nobody
        addresses_after_the_end
        addresses_that_cannot_be_had
        paths_that_cannot_be
        nobody_is_there
        the_wrong_type_is_there
        // Listeners.
        a_listener_accepts_in_order
        a_listener_is_an_iterator
        a_non_blocking_listener_never_waits
        a_path_stays_when_its_listener_goes
        what_a_listener_prints
        // Datagrams.
        datagrams_tell_their_senders
        what_has_no_room_is_lost
        empty_datagrams_arrive
        too_long_a_datagram_is_refused
        to_send_needs_an_address
        who_is_connected_hears_one
        a_receiver_that_is_gone_refuses
        timeouts_are_over
        a_non_blocking_datagram_socket_never_waits
        a_shutdown_ends_what_is_received
        a_shutdown_refuses_what_is_sent
        clones_share_the_queue
        descriptors_are_handed_on
        what_is_printed
    ;
}

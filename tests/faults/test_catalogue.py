"""Every fault that Tau must survive: what it is, and the tests that show what becomes of it.

Where Tau does something else than one would expect, or nothing can be done, the README says so in the sentence named.
"""

from __future__ import annotations

import ast
import functools
import re

import pytest
from conftest import REPOSITORY

#: Id | the fault | words of the README, if it says something about it | the tests.
FAULTS = """
D1 | killed before a run is committed | An answer is given only when what it says is on the disk
    test_a_fault_at_each_commit_costs_nothing_and_doubles_nothing
D2 | killed after the commit, before the answer
    test_a_fault_at_each_commit_costs_nothing_and_doubles_nothing test_a_lost_read_is_repeated_and_a_lost_write_is_not
D3 | killed after the answer, before the start of the process
    test_a_run_acknowledged_right_before_kill_9_happens_once test_a_run_that_daemon_after_daemon_could_not_start_happens_once
D4 | killed as the process starts | started at most once unless its author set retries
    test_an_unborn_run_is_started_again_only_if_nothing_can_have_started_it test_the_books_are_right_after_random_kills
    test_a_cancel_of_an_unborn_run_is_not_forgotten
D5 | killed while a run runs
    test_a_run_survives_kill_9_of_the_daemon_with_its_whole_trace test_a_time_limit_holds_across_a_restart_of_the_daemon
D6 | killed before the end of a run was read
    test_a_run_that_ends_without_a_daemon_gets_its_true_verdict
D7 | killed after the outcome was kept, before anybody was told
    test_a_fault_at_each_commit_costs_nothing_and_doubles_nothing test_sigterm_leaves_live_runs_to_the_next_daemon
D8 | killed between a tick's instant and its commit
    test_a_kill_before_the_commit_changes_nothing
D9 | killed right after a tick's commit
    test_a_kill_in_the_middle_of_many_schedules_runs_none_twice test_two_years_with_everything_that_can_happen
D10 | killed in a deploy
    test_a_daemon_that_dies_while_it_deploys_serves_one_version_or_the_other test_sources_that_a_crash_left_are_swept
D11 | killed in a migration
    test_a_migration_killed_at_any_statement_is_done_or_undone
D12 | killed in a backup, a restore, or while old runs are removed
    test_a_backup_killed_anywhere_is_whole_or_not_there test_what_a_crash_left_of_a_backup_is_swept
    test_a_restore_killed_anywhere_can_be_done_again_and_keeps_the_old_store
    test_a_daemon_killed_while_it_removes_goes_on_later
D13 | killed while it stops
    test_a_daemon_that_dies_while_it_stops_leaves_its_runs_to_the_next
D14 | the power goes | it ends as `lost`, and without `retries` is not run again
    test_the_power_goes_before_any_sync test_this_disk_does_lose_what_was_not_synced
D15 | twenty kills in a row while it starts
    test_deaths_in_a_row_while_starting_change_nothing
W1 | a run is killed
    test_a_process_that_dies_is_a_failed_run test_a_run_that_takes_too_much_memory_says_so_and_the_daemon_lives
W2 | out of memory | where the kernel took it for want of memory the error says so
    test_a_run_that_takes_too_much_memory_says_so_and_the_daemon_lives test_the_counter_is_read_in_both_of_its_forms
    test_where_nobody_counts_a_limit_makes_it_probable test_the_system_enforces_limits_and_the_run_still_tells_its_end
W3 | os._exit(0) without a result | A process that dies without a result is a failed run of kind `died`, whatever its exit code
    test_a_process_that_dies_is_a_failed_run
W4 | segmentation fault, abort
    test_a_process_that_dies_is_a_failed_run test_a_segmentation_fault_leaves_its_frames_in_the_log
    test_a_death_inside_a_step_names_the_step_and_keeps_the_log
W5 | sys.exit, KeyboardInterrupt, GeneratorExit | `sys.exit(0)` ends a run as success
    test_whatever_is_raised_is_a_failed_run_with_its_text test_a_function_may_end_as_a_program_does
W6 | recursion without end
    test_recursion_without_end_is_ended_by_the_memory_limit test_whatever_is_raised_is_a_failed_run_with_its_text
W7 | a run closes all descriptors | A run that closes all its descriptors still tells its log and its end
    test_closing_descriptors_does_not_silence_a_run test_without_its_stdout_a_run_still_returns
W8 | a run daemonizes | on macOS only its process group
    test_what_a_run_leaves_behind_is_ended test_what_a_run_leaves_is_ended_also_when_its_fork_server_is_gone
    test_descendants_of_ten_runs_at_once_are_not_confused_and_none_outlives_its_run
W9 | a grandchild keeps stdout open
    test_what_a_run_leaves_behind_is_ended
W10 | a run ignores SIGTERM, or has its own handler | is only its `partial_result`
    test_what_is_returned_after_a_stop_is_no_success test_an_error_is_told_and_tried_again_although_a_thread_lives_on
    test_a_run_that_ignores_sigterm_is_killed test_cancelling_ends_fifty_children_that_ignore_sigterm
    test_a_run_that_takes_too_long_times_out_with_all_it_started
W11 | a run blocks its event loop
    test_a_blocked_event_loop_can_be_cancelled test_a_run_with_a_pool_is_cancelled_at_once_and_without_noise
W12 | a flood of log lines | Of what a run logs, 10,000 lines or 8 MiB are kept
    test_100_000_printed_lines_are_counted_and_the_last_are_kept
    test_output_of_descriptors_is_counted_and_its_last_lines_are_kept test_an_output_that_never_ends_does_not_fill_the_disk
W13 | one huge line
    test_a_line_of_100_mb_is_cut test_unfinished_output_is_not_cut_in_pieces
W14 | raw bytes, NUL, escape sequences, lone surrogates
    test_output_of_any_bytes_is_kept_as_text test_results_have_a_documented_json_form
W15 | a result that is no JSON | Anything else fails the run with the place of the culprit
    test_a_result_without_a_json_form_fails_the_run test_results_have_a_documented_json_form
W16 | a fork bomb | processes that the user of taud may have in all
    test_a_fork_bomb_meets_the_limit_of_processes_and_can_be_cancelled
W17 | a run fills the disk
    test_the_system_enforces_limits_and_the_run_still_tells_its_end test_an_output_that_never_ends_does_not_fill_the_disk
    test_a_full_disk_loses_nothing_and_recovers_by_itself
W18 | a run prints what looks like the protocol
    test_nothing_printed_can_forge_a_record test_records_that_make_no_sense_do_not_keep_a_run_from_ending
W19 | a run calls the daemon | while it waits for one it keeps its slot
    test_a_run_may_start_others_and_need_not_wait_for_a_slot
W20 | a run stops itself
    test_a_run_that_stops_itself_can_be_cancelled
W21 | its pid belongs to somebody else by now
    test_a_stranger_with_the_pid_of_a_run_gets_no_signal test_a_process_is_known_by_its_pid_and_its_start
W22 | a file that fails, hangs or exits as it is loaded
    test_a_file_that_does_not_load_says_where test_a_file_that_fails_to_load_in_a_run_is_of_kind_load
W23 | a file that is empty, huge, binary, a link, a fifo, a directory
    test_what_cannot_be_a_pipeline_file_is_refused_with_the_reason test_a_path_that_is_no_file_is_refused_at_once
    test_a_file_may_be_empty_or_a_link
W24 | an exception that cannot be printed, hangs, or is huge
    test_whatever_is_raised_is_a_failed_run_with_its_text test_locals_that_raise_hang_or_are_huge_are_held_off
    test_an_error_of_a_hundred_megabytes_is_cut
C1 | the clock is set back | A clock that is set back repeats no tick
    test_a_clock_that_is_set_back_repeats_nothing test_an_interval_keeps_its_distance_when_the_clock_is_set_back
    test_a_clock_set_back_a_day_makes_nobody_wait_a_day test_a_pause_does_not_come_again_when_the_clock_is_set_back
C2 | the clock is set forward, by ten years
    test_a_clock_that_is_set_forward_is_a_miss test_ten_years_are_decided_at_once test_ten_years_are_skipped_and_not_counted
C3 | the machine sleeps
    test_a_suspended_machine_catches_up_and_the_ledger_says_why
C4 | summer time
    test_ticks_follow_from_the_rule test_ticks_are_those_of_a_clock_that_is_walked
    test_an_hourly_job_fires_25_times_on_the_fall_back_day_and_23_times_in_spring
C5 | leap days and days that do not exist
    test_ticks_follow_from_the_rule test_what_is_no_expression_is_refused_with_its_place
C6 | the data of time zones change | Time zones are read again at the start and daily
    test_a_time_zone_that_changes_moves_what_is_due test_a_time_zone_that_the_system_has_lost_stops_nobody_else
C7 | the clock shows 1970 | A clock that was never set (before 2026) decides nothing
    test_a_clock_that_starts_at_1970_decides_nothing_until_it_is_set test_a_clock_that_was_never_set_decides_nothing
C8 | a leap second | durations are measured by a clock that nobody sets
    test_a_leap_second_is_nothing_whether_stepped_or_smeared
C9 | order and durations | durations are measured by a clock that nobody sets
    test_a_clock_that_is_set_back_during_a_run_gives_no_negative_duration test_ids_grow_whatever_the_clock_does
C10 | ten thousand schedules at one second
    test_a_kill_in_the_middle_of_many_schedules_runs_none_twice
C11 | the last run is still going at the next tick
    test_overlapping_ticks_wait_are_skipped_or_take_over test_due_decides
C12 | the daemon was down over many ticks
    test_a_daemon_that_was_down_catches_up_and_can_say_why test_a_daemon_that_was_down_says_from_when_until_when
    test_a_cap_drops_the_oldest_of_many
C13 | a schedule changes just before it is due
    test_edits_pauses_and_disabling_move_the_watermark_to_now test_a_tick_that_is_undecided_when_its_schedule_is_edited_is_told
S1 | the disk is full | Requests are refused as `storage_full`
    test_a_full_disk_loses_nothing_and_recovers_by_itself test_a_full_disk_refuses_and_recovers_by_itself
    test_a_fault_at_each_commit_costs_nothing_and_doubles_nothing test_a_daemon_that_could_not_look_says_so
S2 | a sync fails | taud ends at once with exit code 1
    test_after_a_failed_sync_nothing_is_tried_again_and_nothing_is_lost
S3 | the disk can only be read
    test_a_disk_that_can_only_be_read_refuses_writes_and_recovers test_a_home_that_is_mounted_read_only_is_refused_by_name
    test_a_place_that_cannot_be_written_is_refused_by_name
S4 | the database is damaged, or empty | A single flipped byte inside a row is found by nobody
    test_what_cannot_be_used_is_refused_untouched test_what_is_no_database_is_refused
    test_a_large_database_is_not_looked_through_whole
S5 | the log of the database is gone | Copying `tau.db` alone is none
    test_what_cannot_be_used_is_refused_untouched test_whoever_looks_into_the_store_meanwhile_takes_nothing_away
S6 | two daemons
    test_a_second_daemon_is_refused_and_told_the_owner test_of_simultaneous_starts_exactly_one_serves
S7 | the database is of a newer Tau
    test_a_database_of_a_newer_tau_is_refused_untouched test_what_cannot_be_used_is_refused_untouched
S8 | the database is of an older Tau | copied to `tau.db.before-vN`
    test_a_migration_killed_at_any_statement_is_done_or_undone test_before_a_migration_there_is_a_whole_copy
    test_an_upgrade_under_a_live_run_and_the_way_back
S9 | a backup while runs are added
    test_a_backup_made_while_runs_are_added_has_all_that_was_acknowledged
S10 | very many runs | 1,000,000 runs stored
    test_a_daemon_removes_what_is_old_by_itself test_the_file_shrinks_and_others_go_first
S11 | a client that stops reading
    test_a_client_that_stops_reading_does_not_let_the_log_of_the_database_grow
S12 | values that SQLite cannot hold | beyond 64 bits, NaN, infinity and lone surrogates are refused
    test_what_the_store_could_not_keep_makes_no_run test_what_the_store_can_keep_comes_back_as_it_was
    test_a_result_without_a_json_form_fails_the_run
S13 | a network file system | locks cannot be trusted there
    test_a_home_on_a_network_disk_is_warned_of test_a_file_system_is_known_by_the_longest_mount
S14 | the modes of files
    test_everything_in_the_home_is_for_its_owner_alone
E1 | a stale socket
    test_only_a_stale_socket_is_replaced
E2 | a live socket
    test_only_a_stale_socket_is_replaced test_a_second_daemon_is_refused_and_told_the_owner
E3 | a link at the place of the socket
    test_only_a_stale_socket_is_replaced test_a_home_of_somebody_else_is_refused
E4 | a path too long for a socket
    test_a_home_too_deep_for_a_socket_address_works
E5 | SIGTERM, twice | A second signal ends it at once
    test_sigterm_leaves_live_runs_to_the_next_daemon test_a_second_signal_ends_a_daemon_that_cannot_stop
    test_an_upgrade_while_runs_are_live_and_queued test_draining_admits_nothing_new_and_a_signal_ends_it
E6 | SIGHUP, SIGPIPE, a closed terminal | make it read its configuration again
    test_sighup_reads_the_configuration_again test_a_terminal_that_closes_does_not_end_it
    test_hangups_broken_pipes_and_a_closed_terminal_end_no_daemon test_ctrl_c_in_its_terminal_ends_the_daemon_and_no_run
E7 | an empty environment, closed descriptors
    test_an_empty_environment_and_a_directory_that_cannot_be_written_will_do
    test_the_first_files_of_a_daemon_do_not_become_its_outputs test_closed_standard_descriptors_do_no_harm
E8 | root
    test_root_is_warned_and_served
E9 | started by its socket
    test_systemd_socket_activate_starts_it_upon_the_first_command test_the_first_command_starts_it_and_killing_it_loses_nothing
E10 | a loop that does not turn
    test_a_frozen_daemon_stops_pinging_and_is_replaced_while_its_run_goes_on
    test_a_blocked_event_loop_stops_pinging_and_says_where_it_is
E11 | no daemon
    test_without_a_daemon_it_is_exit_6_and_says_how_to_start_one test_why_there_is_no_daemon_is_told_apart
E12 | a log that cannot be written | taud goes on without it
    test_a_log_that_nobody_takes_harms_nobody test_a_full_disk_below_the_log_harms_nobody
N1 | a slow client
    test_a_request_must_be_finished_in_time test_an_attack_changes_nothing_for_others
N2 | a client that does not read | who does not read for 30 s is dropped
    test_a_reader_must_read
N3 | a client that is half gone
    test_a_peer_that_has_said_all_still_gets_its_answers test_clients_that_die_waiting_are_let_go
    test_a_client_that_goes_leaves_nothing test_an_attack_changes_nothing_for_others
N4 | an endless line
    test_a_line_of_20_mb_is_refused_without_being_kept
N5 | deep nesting
    test_a_bad_request_is_refused_and_the_connection_goes_on test_depth_is_counted_without_recursion
N6 | other encodings
    test_what_is_not_json_ends_the_connection
N7 | numbers and texts that are none
    test_what_is_not_json_ends_the_connection test_what_the_store_could_not_keep_makes_no_run
N8 | odd requests
    test_a_bad_request_is_refused_and_the_connection_goes_on test_ids_are_given_back_as_they_came
    test_a_batch_is_answered_as_an_array_without_its_notifications
N9 | ten thousand requests at once
    test_requests_may_be_pipelined_and_answers_carry_their_id
N10 | thousands of connections | 1,024 connections with a key
    test_200_idle_connections_disturb_nobody test_where_descriptors_are_few_peers_have_fewer
    test_the_one_who_waits_longest_goes_first
N11 | no descriptors left
    test_where_descriptors_are_few_peers_have_fewer
N12 | TLS, SSH and HTTP where something else is spoken
    test_what_is_no_tongue_at_all_is_told_so_at_once test_odd_requests_get_their_status
    test_a_web_page_cannot_reach_a_later_line test_the_client_tells_why_there_is_no_tls
N13 | deploys of one name at the same time
    test_versions_of_deploys_at_the_same_time_are_distinct_and_dense
    test_the_same_new_file_deployed_at_once_is_one_version
N14 | undeployed during a run
    test_undeploy_cancels_what_is_queued_and_lets_live_runs_end
N15 | deployed during a run
    test_a_run_keeps_the_version_it_was_queued_with
N16 | odd names
    test_a_file_that_does_not_load_says_where test_what_cannot_be_deployed_together_is_refused
N17 | a client that dies waiting
    test_clients_that_die_waiting_are_let_go
N18 | a restart while somebody waits
    test_an_upgrade_while_runs_are_live_and_queued test_a_lost_read_is_repeated_and_a_lost_write_is_not
N19 | versions that differ
    test_what_answers_is_told_apart test_a_method_that_a_daemon_of_another_version_lacks_is_said_to_be_one
N20 | many connections when it stops
    test_a_daemon_with_many_connections_stops_without_a_word
"""
#: What there must be, without gaps.
IDS = [
    f"{letter}{number}"
    for letter, numbers in (
        ("D", range(1, 16)), ("W", range(1, 25)), ("C", range(1, 14)), ("S", range(1, 15)), ("E", range(1, 13)), ("N", range(1, 21))
    )
    for number in numbers
]  # fmt: skip
ROWS = [
    ([word.strip() for word in head.split("|")], tests.split())
    for head, tests in re.findall(r"^(\S.*)\n((?:    .*\n)*)", FAULTS, re.MULTILINE)
]


@functools.cache
def known_tests() -> set[str]:
    """The names of all test functions."""
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in (REPOSITORY / "tests").rglob("test_*.py"))
    nodes = (node for tree in trees for node in ast.walk(tree))
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_no_fault_is_forgotten() -> None:
    assert [head[0] for head, _ in ROWS] == IDS


@pytest.mark.parametrize(("head", "tests"), ROWS, ids=[head[0] for head, _ in ROWS])
def test_what_is_said_of_a_fault_is_there(head: list[str], tests: list[str]) -> None:
    assert tests
    assert set(tests) <= known_tests()
    _, fault, *words = head
    assert fault
    readme = " ".join((REPOSITORY / "README.md").read_text(encoding="utf-8").split())
    for sentence in words:
        assert sentence in readme

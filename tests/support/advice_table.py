"""The messages that advise something, with the tests that follow the advice: a new one needs a line here."""

FOLLOWED: dict[str, list[str]] = {
    "tests/hub/test_pull_target.py::test_a_folder_that_holds_something_else_is_refused": [
        "{}: expected no such folder, or the same one; found something else; choose another --out",
        (
            "{}: expected no such folder, or the same one; found another state of it, or a damaged {}; "
            "choose another --out, or remove {}, and pull it again"
        ),
        "{}; remove {}, and pull it again",
    ],
    "tests/hub/test_hub_pull.py::test_a_program_that_is_killed_for_real": [
        "what was fetched is kept; run the same command again to go on",
    ],
    "tests/hub/test_hub_pull.py::test_bytes_that_come_damaged_are_fetched_again": [
        "{}@{}: {}: came damaged; run the same command again",
    ],
    "tests/hub/test_hub_pull.py::test_records_that_do_not_agree_are_refused": [
        "{}: expected {}, which its records name; found none; its owner pushes it again",
        ("{}: expected a manifest of {} shards, as its dataset.json says; found one of {}; its owner pushes it again"),
    ],
    "tests/hub/test_model_files.py::test_a_hub_that_cannot_say_is_not_taken_for_one_that_has_no_such_file": [
        "{}: the hub cannot say whether it has {} (status {}); run the same command again later",
    ],
    "tests/hub/test_hub_push.py::test_a_hub_that_fails_is_one_line_and_what_is_done_stays": [
        "{} cannot be reached: {}: {}; run the same command again when it can (what is finished is kept)",
        "{} {} (status {}): {}; run the same command again later (what is finished is kept)",
    ],
    "tests/hub/test_hub_push.py::test_a_dataset_that_changes_meanwhile_is_noticed": [
        "{}@{}: {}: is not there as it was sent; run the same command again",
        "was changed by somebody else at the same time; run the same command again",
    ],
    "tests/hub/test_hub_push.py::test_a_program_that_is_killed_for_real": [
        "what was sent stays there; run the same command again to go on",
    ],
    "tests/hub/test_join.py::test_a_damaged_shard_does_not_get_in": [
        (
            "{}: damaged: expected sha256 {}…, found {}…; restore it, or run the command that made its folder "
            "again, then merge again"
        ),
    ],
    "tests/hub/test_join.py::test_what_does_not_go_together_is_refused": [
        "{}: expected an empty folder; found {} in it; choose another --out",
        "{}: holds something else than what was asked for; choose another --out",
    ],
    "tests/trainer/attach/test_existing_lengths.py::test_tokens_without_an_embedding_are_known_before_a_run": [
        (
            "expected tokens of the {} rows of the LLM's embeddings; found {}, whose id is {}; call "
            "model.resize_token_embeddings(len(processor.tokenizer)) and save the model again"
        ),
    ],
    "tests/storage/test_results.py::test_other_files_are_kept": [
        "{}; found one that the command did not write; name another, or remove it",
    ],
    "tests/output/test_advice_followed.py::test_a_folder_that_is_full_is_removed_or_another_one_chosen": [
        "{}: expected a new or an empty folder; choose another with --out, or remove this one",
    ],
    "tests/output/test_advice_followed.py::test_an_unfinished_folder_is_finished": [
        "finished shards are kept; run the same command again to go on",
        "run the same command again to go on",
        "run the same command again",
        "run the same `{}{}` command again{}",
    ],
    "tests/output/test_advice_followed.py::test_an_input_that_changes_during_a_run_is_put_back": [
        (
            "{}: has changed since this run listed it; put it back as it was and run the same command again (finished "
            "shards are kept), or choose another --out"
        ),
    ],
    "tests/output/test_advice_followed.py::test_another_run_is_refused_and_another_out_is_chosen": [
        "{}: expected an empty folder or one that sea-pipeline began; found {} in it; choose another --out",
        (
            "{}: the image {} was at another place of its input in {}, with which this folder was last run; choose "
            "another --out"
        ),
        "{}: {}; choose another --out. Differing: {}",
        (
            "{}: the image {} was another one when this folder was begun than the one that {} has now; choose "
            "another --out"
        ),
    ],
    "tests/output/test_extend.py::test_without_extend_it_is_refused_and_with_it_done": [
        "{}: was begun with less: {}; add {}, or choose another --out",
    ],
    "tests/output/test_advice_followed.py::test_shards_that_another_run_took_back_are_done_again": [
        "{}: another run takes shards back at the same time; run the command again",
    ],
    "tests/output/test_advice_followed.py::test_a_plan_of_other_images_is_not_written_again_and_its_own_are_given": [
        (
            "{}; restore it, or give the very images that it was begun with, from which it is made anew, or "
            "choose another --out"
        ),
    ],
    "tests/execution/test_run.py::test_mostly_broken_input_stops_the_run_and_nothing_is_lost": [
        (
            "{}: {} of {} images are bad so far, more than --max-bad {} allows; {} fail in {}{}; see all with "
            "sea-pipeline status; {}, or give a larger --max-bad, and run the command again"
        ),
    ],
    "tests/output/test_advice_followed.py::test_what_a_killed_run_without_a_lock_left_is_deleted": [
        (
            "{}: another run extends this folder by other images, or was killed as it did; run the same command "
            "again when it is over, or delete the file if no run is going on"
        ),
        (
            "{}: another run with other settings or images has begun this folder, or was killed as it did; "
            "choose another --out, or delete the file if no run is going on"
        ),
    ],
    "tests/output/test_advice_followed.py::test_what_a_worker_could_not_finish_is_finished": [
        "{}: cannot be finished: {}; run the same command again",
    ],
    "tests/storage/test_storage.py::test_full_for_real_at_the_largest_files": [
        "{}: cannot be written: {}; {} and run the same command again{}",
    ],
    "tests/output/test_mend.py::test_the_advice_brings_back_what_is_damaged": [
        "run the command that made the folder again, which makes it anew",
        "{}; restore it, or delete it and {}",
        "remove it, and",
        "restore it, or",
    ],
    "tests/output/test_mend.py::test_a_file_that_cannot_be_read_is_not_taken_for_damaged": [
        "run the same command again later; if it stays so, restore it from a copy",
    ],
    "tests/output/test_mend.py::test_what_is_done_again_is_told": [
        "{}; it is made again",
        "{}; shard {} is done again",
    ],
    "tests/storage/test_remote.py::test_a_store_that_goes_on_failing_is_one_line_and_what_is_done_stays": [
        (
            "{}: cannot be {}: tried again and again, and always: {}; run the same command again later (what is "
            "finished is kept)"
        ),
    ],
    "tests/execution/test_run.py::test_a_shard_that_fails_is_listed_and_the_others_are_done": [
        "{} (see {}; run the same command to try again)",
    ],
    "tests/execution/test_run.py::test_an_image_that_can_never_be_read_does_not_fail_its_shard": [
        "{}; tried again and again; when it can be read, give --retry-bad",
    ],
    "tests/execution/test_run.py::test_an_image_root_that_vanishes_stops_the_run": [
        "{}: is gone; bring it back and run the same command again",
    ],
    "tests/output/test_records.py::test_a_damaged_run_is_one_line_and_its_advice_ends_in_a_report": [
        "{}: expected a JSON object; found {}; restore it",
        "{}: cannot be read: {}; restore it",
        "{}: cannot be read as JSON: {}; restore it",
        "remove it, and run the same command again, which makes it anew or goes without",
        "{}: damaged{}; restore it",
        "{}: damaged: {}; restore it",
    ],
    "tests/execution/test_workers_runs.py::test_a_scheduler_that_dies_is_one_line": [
        "the scheduler is gone ({}); what is finished is kept: start it, and run the same command again",
    ],
    "tests/trainer/training/test_train.py::test_labels_of_other_photos_with_the_same_names": [
        (
            "{}: made of other files than {} names, by {} of the {} photos that were compared (such as {}); make "
            "it again in another --out, unless they show the same in another form"
        ),
    ],
    "tests/trainer/evaluation/test_harness.py::test_results_of_what_had_the_models_name_before_are_pointed_out": [
        "{}: {} was measured before {} was written; if that is another model by now, run its command again",
    ],
    "tests/trainer/evaluation/test_suites.py::test_the_llm_of_another_model_is_not_taken": [
        (
            "{}: expected the LLM of {}; found other weights, or none that can be read; remove it, or name the folder "
            "of an LLM with --llm"
        ),
    ],
    "tests/trainer/model/test_borders.py::test_a_cut_weight_file_and_a_cut_cache": [
        "restore it, or remove {}, which is made again from it",
    ],
    "tests/trainer/model/test_borders.py::test_every_error_is_one_line_and_nothing_is_lost": [
        "make room, or mend what it says, and run the same command again (what is finished is kept)",
    ],
    "tests/trainer/model/test_checkpoints.py::test_without_a_whole_one_a_line_says_so": [
        (
            "{}; expected a whole checkpoint in {}, found none; put back a copy of one, or remove {} to begin "
            "the run anew"
        ),
    ],
    "tests/trainer/model/test_checkpoints.py::test_what_is_in_the_place_of_checkpoints_is_named": [
        (
            "{}: expected a folder; found a file, or a link that leads to none; mend or remove it, and run the "
            "same command again"
        ),
    ],
    "tests/trainer/training/test_run_advice.py::test_a_mended_image_lets_a_run_go_on": [
        "mend it and go on with --resume, or remove the sample from the data and begin anew with another --out",
    ],
    "tests/trainer/training/test_run_advice.py::test_a_record_is_restored": [
        "{}: expected {} in it; found none; restore the file",
        (
            "{}: expected {} in run.json and summary.json of it, or of a run that it began with; found none; "
            "restore the file"
        ),
        "{}; restore it, or choose another --out",
        "{}: expected a run of this version; {}; restore it, or train anew",
    ],
    "tests/trainer/training/test_stages.py::test_the_model_of_an_earlier_stage_is_put_back": [
        (
            "{}: has changed since {} began with it: {}; put it back and run the same command again, or choose "
            "another --out"
        ),
    ],
    "tests/output/test_records.py::test_a_damaged_line_of_the_log_is_named_and_its_advice_ends_in_a_report": [
        (
            "{}: line {}: damaged: expected a JSON object with the numbers step and seconds; put back a copy of the "
            "file, or remove that line, and run the same command again"
        ),
    ],
    "tests/trainer/training/test_run_advice.py::test_an_unfinished_run_is_gone_on_with": [
        "{}: expected a finished run; found no summary.json; run the same sea-pipeline train command again",
        (
            "{}: this run is not finished; run the same sea-pipeline train command again, then export it, or name "
            "one of the steps {} with --checkpoint"
        ),
    ],
    "tests/trainer/training/test_run_advice.py::test_another_out_is_chosen_or_resume_left_out": [
        "expected a run to go on with; found none; leave out --resume to begin one",
        "{}: holds another run: {}; choose another --out",
        ("{}: expected the record of the run whose files are in {}; found none; put it back, or choose another --out"),
        "{}: expected a new folder or one of a run; found other files; choose another --out",
    ],
    "tests/trainer/training/test_run_fields.py::test_rows_that_an_earlier_version_took_are_named": [
        "{}: holds another run: {}; {} of its rows would be left out now: an earlier version took them, or their "
        "images were there; finish it with that version, put the images back, or choose another --out",
    ],
    "tests/trainer/training/test_run_advice.py::test_another_step_is_named_or_it_is_trained_again": [
        "name another step, or train it again",
    ],
    "tests/trainer/training/test_run_advice.py::test_the_model_that_a_run_began_with_is_put_back": [
        "{}: began with the model folder {}, which is not there; put it back, or run this where train was run",
        "{}: began with the model folder {}, which has changed since; put back what it was",
        "{}: expected a tensor {}, as the run trained it; found none; put back what it was",
    ],
    "tests/trainer/training/test_run_advice.py::test_the_same_command_goes_on_when_memory_is_free": [
        "run the same command again to go on from the newest checkpoint, if there is one",
        "free some memory, and run the same command again",
        "{}, and run the same command again ({})",
        (
            "free some memory and run the same command again ({}), or begin anew with another --out and a "
            "smaller training_arguments.per_device_train_batch_size"
        ),
    ],
    "tests/trainer/teacher/test_teach.py::test_a_bad_image_costs_that_image": [
        (
            "{} {}, of which its quarantine says: {}; mend that and run sea-pipeline teacher with another --out, or "
            "leave their rows out with data.bad_rows: leave_out"
        ),
    ],
    "tests/trainer/teacher/test_same_teacher.py::test_targets_of_others_are_refused": [
        "{}: expected targets of the {} that {} has; found those of another; run sea-pipeline teacher with --model {}",
    ],
    "tests/trainer/teacher/test_teach.py::test_images_that_were_not_taught_cost_their_rows": [
        "{} {}; run sea-pipeline teacher on that file, or leave their rows out with data.bad_rows: leave_out",
    ],
    "tests/trainer/training/test_resume.py::"
    "test_a_model_that_is_replaced_meanwhile_does_not_get_into_the_one_that_is_saved": [
        "{}: has changed since the run began; put it back and run the same command again ({})",
    ],
    "tests/trainer/training/test_resume.py::test_a_run_that_a_callback_stops_is_not_finished": [
        "{}: {}; run the same command again ({})",
    ],
    "tests/trainer/training/test_argument_table.py::test_an_evaluation_without_memory_goes_on_with_smaller_batches": [
        (
            "free some memory or set a smaller training_arguments.per_device_eval_batch_size, and run the same "
            "command again ({})"
        ),
    ],
    "tests/trainer/export/test_export_cli.py::test_an_unfinished_one_is_gone_on_with": [
        (
            "{}: trains a model of another family, which needs no export; run the same sea-pipeline train command "
            "again, which ends in {}"
        ),
    ],
    "tests/trainer/attach/test_names.py::test_the_advice_gives_labels_by_the_datas_names": [
        (
            "found {}; the labels hold {}; give image_ids as the labels have them, or label again with names as your "
            "data has them (sea-pipeline label --images DATA.json --image-root FOLDER)"
        ),
    ],
    "tests/trainer/teacher/test_teach_mend.py::test_a_codec_that_cannot_be_fitted_again_is_one_line_with_a_way_out": [
        (
            "{}; the one that is fitted now is another than finished shards were written with; restore it, or "
            "remove {} and run the same command again, which teaches every image again"
        ),
    ],
}
"""By the test that does what they say, messages of an output folder; a value of theirs is {}."""

"""Flags that are unknown, missing or wrong, and names of commands and variants."""

from messages import Rows

OVERWRITE = "expected some of config, input, rebuild, shards, weights: got"
MISSPELT = "; did you mean mixed_rand?"
A_KEY = "is a key of the file that --config names"
NO_CARD = "or leave --device out to"
KEYS = "--config {tmp}/k.toml"
ROWS: Rows = {
    "run --output {new}": [
        ("--limit 1.5", "argument --limit: invalid int value: '1.5'"),
        ("--own_background=maybe", "expected true or false, got 'maybe'"),
        ("--overwrite", f"{OVERWRITE} ''"),
        ("--num_worker=3", "did you mean --num_workers?"),
        ("--encoding png", f'--encoding {A_KEY}: write encoding = "png" there'),
        ("--jpeg-quality=90", "write jpeg_quality = 90 there"),
        ("--max_box 0.5 --limit x", "write max_box = 0.5 there"),
        ("--contact=a=b", 'write contact = "a=b" there'),
        ("--encodin png", "unknown flag --encodin; did you mean encoding?"),
        ("more", "unexpected argument 'more'; example: in9 run --output out --input"),
        ("--variants original,mixed_best", "unknown variant 'mixed_best'"),
        ("--variants only_gb_t", "python:MODULE:FUNCTION; did you mean only_bg_t?"),
        ("--image_size 300", "resize must be between --image_size 300"),
        (KEYS, "jpeg_quality must be between 1 and 100: got 0", {"k.toml": "jpeg_quality = 0"}),
        (KEYS, "a line of printable text, at most 1000", {"k.toml": 'creator = "a\\nb"'}),
        (KEYS, "argument terms: expected a line of", {"k.toml": f'terms = "{"x" * 1001}"'}),
        ("--limit 0", "--limit must be at least 1: got 0"),
        ("--per_class mini", "must be all, min or at least 1: got 'mini'; did you mean min?"),
        ("--segmenter grabcutt", "python:MODULE:FUNCTION: got 'grabcutt'; did you mean grabcut?"),
        ("--mixed_rand othr", "(choose from 'any', 'other'); did you mean other?"),
        ("--overwrite confg", f"{OVERWRITE} 'confg'; did you mean config?"),
        ("--attack", "argument --attack: expected all|N|FxB: run the adversarial attack, on"),
        ("--models --limit 3", "argument --models: expected A,B: model names, wildcards, LABEL"),
        ("--split val,val", "--split must name different splits"),
        ("--formats webdatset", "--formats must name some of"),
        ("--device cuda", "leave --device out to run on"),
        ("--dry_run --device cuda", "leave --device out to run on"),
        ("--precision fp8", "invalid choice: 'fp8' (choose from 'fp32', 'tf32', 'bf16')"),
        ("--eval_split test", "--eval_split test: the dataset has val"),
    ],
    "": [
        ("run", "--output DIR is required"),
        ("verify", "--dataset DIR is required"),
        ("export --dataset out", "--to DIR is required"),
        ("import --output out", "--from DIR|TAR|paper: is required"),
        ("run --outptu x", "unknown flag --outptu; did you mean --output?"),
        ("show", "photo PHOTO is required"),
        ("show a.jpg --to a.png", "--box X0,Y0,X1,Y1 is required"),
        ("show a.jpg --box -1,2,3,4", "argument --box: expected X0,Y0,X1,Y1: box around"),
        ("rum", "no command 'rum'; did you mean run?"),
        ("rotate", "invalid choice: 'rotate'"),
        ("--runner=DirectRunner run", "stand behind the command: in9 run --runner=DirectRunner"),
        ("--output=out run", "in9: flags stand behind the command: in9 run --output=out"),
        ("-x run", "in9: flags stand behind the command: in9 run -x"),
        ("export --output x", "; example: in9 export --dataset out --to bg_challenge"),
        ("matrix --models x", "flag of in9 run, evaluate, method, attack, saliency, models, show;"),
        # Beam has a flag of the same name, but it would have no effect here.
        ("attack --dry-run", "no --dry_run, which is a flag of in9 run, generate, evaluate"),
        ("verify --colour", "(see: in9 verify --help all)"),
        ("verify --dask tcp://127.0.0.1:8786", "this command has no --dask"),
        ("import --output {new} --direct_num_workers=2", "unknown flag --direct_num_workers; exam"),
        ("train --dataset {dataset} --variant mixed_ramd", MISSPELT),
        ("matrix --dataset {dataset} --holdout 0.5 --variants original,mixed_ramd", MISSPELT),
        ("saliency --dataset {dataset} --variant mixed_ramd", MISSPELT),
        ("report --dataset {dataset} --columns original,mixed_ramd", MISSPELT),
        ("report --dataset {dataset} --columns sharp", "sharp: the dataset has original, only"),
        ("train --dataset {dataset} --probe --lr 0.2", "leave out --lr or --probe"),
        ("matrix --dataset {dataset} --probe --lr 0.2", "leave out --lr or --probe"),
        ("evaluate --dataset {dataset} --device cuda", NO_CARD),
        ("attack --dataset {dataset} --device cuda", NO_CARD),
        ("saliency --dataset {dataset} --device cuda", NO_CARD),
        ("train --dataset {dataset} --train_split val --device cuda", NO_CARD),
        ("matrix --dataset {dataset} --probe --holdout 0.5 --device cuda", NO_CARD),
    ],
    **{
        f"{command} --dataset {{dataset}}": [
            ("--seed 1", "no --seed, which is a flag of in9 run"),
            ("--seed=1", "did you mean --seeds?"),
            (KEYS, "did you mean --seeds?", {"k.toml": f"[{command}]\nseed = 1\n"}),
            ("--probe --holdout 0.5 --seeds 0,1", "leave out --seeds or --probe"),
            *(
                (f"--seeds={wrong}", "expected whole numbers that differ, separated by commas")
                for wrong in ("", "0,", "1,1", "01,1", "-1", "a", "0.5")
            ),
        ]
        for command in ("train", "matrix")
    },
    "run --output {new} --config {tmp}/flags.toml": [
        ("", f"flags.toml: {says}", {"flags.toml": text})
        for text, says in (
            ("limt = 3", "unknown flag --limt; did you mean --limit?"),
            ("direct_num_worker = 3", "unknown flag --direct_num_worker; did you mean --direct"),
            ('image_size = "large"', "argument --image_size: invalid int value: 'large'"),
            ('resize = "large"', "argument resize: invalid int value: 'large'"),
            ('encodin = "png"', "unknown flag --encodin; did you mean encoding?"),
            ("[run]\nlimt = 3", "unknown flag --limt; did you mean --limit?"),
            ("[rnu]\nlimit = 3", "[rnu] is no command of in9; did you mean run?"),
            ("[run.limit]\nval = 3", "[run.limit] is a table; keys are flags of in9 run"),
            ("[run]\ngrid = 3", "this command has no --grid, which is a flag of in9 attack"),
            ("[run]\nhelp = true", "--help is only for the command line"),
            ('config = "other.toml"', "--config is only for the command line"),
            ("limit", "it is not valid TOML"),
            (b"\xff", "it is not valid TOML"),
            ("limit = " + "[" * 100_000, "it is not valid TOML: it has more than 64 levels"),
            (f"limit = {'[' * 70}{']' * 70}", "it is not valid TOML: it has more than 64 levels"),
        )
    ],
    "verify": [
        *(
            ("--config {tmp}/flags.toml", says, {"flags.toml": text})
            for text, says in (
                ("modls = 3", "unknown flag --modls; example: in9 verify"),
                ("datset = 3", "unknown flag --datset; did you mean --dataset?"),
                ("[verify]\nlimit = 3", "this command has no --limit, which is a flag of in9"),
                ("[verify]\ndirect_num_workers = 3", "unknown flag --direct_num_workers"),
                ("[verify]\ngpu = 'nvidia-l4'", "which is a key of in9 run, evaluate"),
            )
        ),
        ("--config {tmp}", "--config {tmp}: it cannot be read: Is a directory"),
        ("--config {new}", "--config {new}: it cannot be read: No such file or directory"),
    ],
}

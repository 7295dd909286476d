"""Where a job runs: in this process, on Dask's workers, on Dataflow."""

from messages import Rows

GPU_KEY = {"k.toml": 'gpu = "nvidia-l4"'}
KEYS = "--config {tmp}/k.toml"
UNSAFE = "can run code there; use tls:// with certificates, or say insecure:"
GPU = "nvidia-l4:g2-standard-8"
DATAFLOW = (
    "run --output gs://in9/o --input gs://in9/i --runner=DataflowRunner --project=my-project "
    "--region=europe-west4 --temp_location=gs://in9/tmp"
)
ROWS: Rows = {
    "run --output {new}": [
        ("--direct_num_workers -1", "--direct_num_workers must be at least 0"),
        ("--direct_num_workers two", "--direct_num_workers: invalid int value: 'two'"),
        ("--runner NoSuchRunner", "--runner=NoSuchRunner cannot be used"),
        (f"--dry_run {KEYS}", "gpu is for --runner=DataflowRunner", GPU_KEY),
        (f"--dask tcp://127.0.0.1:8786 {KEYS}", "gpu is for --runner=Dataflow", GPU_KEY),
        ("--dry_run --dask tcp://192.0.2.1:8786", "whoever reaches tcp://192.0.2.1:8786"),
    ],
    "generate --output {new} --segmenter box --dask": [
        *(
            (address, f"whoever reaches {address} {UNSAFE}")
            for address in (
                "tcp://192.0.2.1:8786",
                "tcp://0.0.0.0:8786",
                "tcp://[2001:db8::1]:8786",
            )
        ),
        ("{tmp}/s.json", UNSAFE, {"s.json": '{"address": "tcp://192.0.2.1:8786"}'}),
        *(
            ("{tmp}/s.json", "tls://HOST:PORT, tcp://127.0.0.1:PORT, a sche", {"s.json": text})
            for text in ("", "{", "[]", "{}", "\0")
        ),
        ("{tmp}/no-such-file", "expected tls://HOST:PORT"),
        ("''", "argument --dask: expected a value, got ''"),
        ("http://127.0.0.1:8786", "begins with neither tls:// nor tcp://"),
        ("tcp://127.0.0.1:8786 --runner DirectRunner", "chooses the workers; leave out --runner"),
        ("tcp://127.0.0.1:8786 --direct_running_mode multi_processing", "leave out --runner"),
    ],
    DATAFLOW: [
        ("--project=", "--project=PROJECT is required"),
        ("--region=", "--region=REGION is required"),
        ("--temp_location=", "--temp_location=gs://BUCKET/FOLDER is required"),
        ("--temp_location=/tmp", "--temp_location must be gs://"),
        ("--output out", "--output out lies on this machine"),
        ("--input ''", "argument --input: expected a value, got ''"),
        ("--annotations boxes", "--annotations boxes lies on this machine"),
        ("--weights w", "--weights w lies on this machine"),
        ("--backgrounds b", "--backgrounds b lies on this machine"),
        ("--publish p", "--publish p lies on this machine"),
        ("--models resnet18=a.pth", "workers of Dataflow cannot reach a.pth"),
        ("--models onnx:a.onnx", "workers of Dataflow cannot reach a.onnx"),
        ("--models Mine:=answers:a.csv", "workers of Dataflow cannot reach a.csv"),
        ("--models erm#*:=answers:{tmp}/*.csv", "cannot reach {tmp}/1.csv", {"1.csv": ""}),
        ("--models hf:/tmp", "workers of Dataflow cannot reach /tmp"),
        (
            "--models @{tmp}/models.txt",
            "--models resnet50=a.pth: workers of Dataflow cannot reach a.pth",
            {"models.txt": "resnet18  # ours:\nresnet50=a.pth\n"},
        ),
        ("--weights gs://", "gs:// names no bucket"),
        ("--models onnx:gs:///a.onnx", "gs:///a.onnx names no bucket"),
        ("--project=12345", "Invalid Project ID (12345)"),
        ("--job_name=In9", "Invalid job_name (In9)"),
        ("--num_workers=9 --max_num_workers=3", "cannot exceed max_num_workers (3)"),
        ("--device cuda", "--device cuda needs the key gpu on Dataflow"),
        ("--runner=DirectRunner --no_wait_until_finish", "--no_wait_until_finish is for --runner"),
    ],
    f"{DATAFLOW} {KEYS}": [
        (words, says, {"k.toml": f'gpu = "{gpu}"'})
        for gpu, words, says in (
            ("L4!", "", "gpu L4!: expected TYPE[:MACHINE][,OPTION...]"),
            ("nvidia-t4", "", "gpu nvidia-t4: expected one of nvidia-l4, nvidia-tesla-t4"),
            ("nvidia-l4", "", "gpu nvidia-l4: only machines g2-* have it"),
            ("nvidia-tesla-t4,fast", "", "'fast' is no option; known: count:N"),
            ("nvidia-tesla-t4,count:2,count:4", "", "count is given twice"),
            ("nvidia-tesla-t4,count:2,use_nvidia_mps", "", "machines with a single GPU"),
            (GPU, "--disk_size_gb=25", "needs a boot disk of 50 GB or more"),
            (GPU, "", "--sdk_container_image=IMAGE is required with gpu"),
            ("nvidia-l4", "--device cpu", "contradict each other"),
            ("nvidia-l4", "--runner=DirectRunner", "gpu is for --runner=DataflowRunner"),
        )
    ],
}

"""Shards in a bucket, read as `s3://`: a server on this machine stands in for the real one."""

import json
import urllib.request

import pytest
import torch
from data import shard_making as making

from allsight.cli import main
from allsight.config import ConfigError
from allsight.data.readers import open_reader
from allsight.data.shards.checking import index_place
from allsight.data.shards.remote import FsspecStore, Patience
from allsight.types import DataError

s3fs = pytest.importorskip("s3fs", reason="needs s3fs: pip install s3fs")
pytest.importorskip("moto.server", reason="needs a server to stand in for S3: pip install 'moto[server]'")

# The packages behind s3fs have warnings of their own.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE")
RIGHTS = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """A folder of indexed shards: 24 samples in 3 tars."""
    folder = making.class_shards(tmp_path_factory.mktemp("near") / "set")
    index_place(folder)
    return folder


@pytest.fixture(scope="module")
def server():
    """Its address, and the keys of a user who may do everything; from here on it knows nobody else."""
    import botocore.session
    from moto.server import ThreadedMotoServer

    running = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    running.start()
    url = "http://127.0.0.1:{1}".format(*running.get_host_and_port())
    anyone = {"aws_access_key_id": "any", "aws_secret_access_key": "any"}
    iam = botocore.session.Session().create_client("iam", "us-east-1", endpoint_url=url, **anyone)
    iam.create_user(UserName="reader")
    iam.put_user_policy(UserName="reader", PolicyName="all", PolicyDocument=json.dumps(RIGHTS))
    key = iam.create_access_key(UserName="reader")["AccessKey"]
    # How many requests are answered before keys are looked at.
    kind = {"Content-Type": "application/octet-stream"}
    urllib.request.urlopen(urllib.request.Request(f"{url}/moto-api/reset-auth", b"0", kind)).close()
    yield url, (key["AccessKeyId"], key["SecretAccessKey"])
    running.stop()


@pytest.fixture
def bucket(server, shards, monkeypatch, tmp_path):
    """A bucket with the shards; the environment says where it is and who reads."""
    url, keys = server
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", keys[0])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", keys[1])
    s3fs.S3FileSystem.clear_instance_cache()
    files = s3fs.S3FileSystem()
    if not files.exists("pets"):
        files.mkdir("pets")
    for path in shards.iterdir():
        files.pipe_file(f"pets/{path.name}", path.read_bytes())
    yield files
    s3fs.S3FileSystem.clear_instance_cache()


def patience(pauses):
    return Patience(tries=4, sleep=pauses.append)


@pytest.mark.parametrize("place", ["s3://pets", "s3://pets/{split}-{00000..00002}.tar"])
def test_samples_are_those_of_the_disk(bucket, shards, place):
    near, far = open_reader(f"webdataset:{shards}"), open_reader(f"webdataset:{place}")
    assert len(near) == len(far) == 24 and near.classes == far.classes
    far.ahead(range(8, 16))
    for index in (23, 0, *range(8, 16)):
        assert near[index].id == far[index].id and near[index].targets == far[index].targets
        assert torch.equal(near[index].image.pixels, far[index].image.pixels)


def test_only_the_bytes_of_a_sample_are_fetched(bucket, shards):
    reader = open_reader("webdataset:s3://pets")
    reader[9]
    before = reader.counts.received
    reader[10]
    assert 1024 <= reader.counts.received - before < (shards / "train-00001.tar").stat().st_size / 4


def test_what_is_missing_is_one_line_at_once(bucket):
    with pytest.raises(DataError, match=r"s3://pets/val.shards.json: no such file.*allsight data index"):
        open_reader("webdataset:s3://pets", split="val")
    with pytest.raises(DataError, match=r"s3://nowhere/train.shards.json: no such file"):
        open_reader("webdataset:s3://nowhere")
    reader = open_reader("webdataset:s3://pets")
    bucket.rm("pets/train-00001.tar")
    with pytest.raises(ConfigError, match=r"s3://pets/train-00001.tar: no such shard"):
        reader[9]
    assert reader.counts.retries == 0


def test_a_range_past_the_end_is_not_taken_for_bytes(bucket, shards):
    pauses, size = [], (shards / "train-00000.tar").stat().st_size
    store = FsspecStore("s3://pets", patience(pauses))
    with pytest.raises(ConfigError, match=r"train-00000.tar: .*shorter than its index says"):
        store.read("train-00000.tar", size + 10, 10)
    assert not pauses


@pytest.mark.parametrize("who", ["a stranger", "a wrong secret", "nobody"])
def test_wrong_keys_are_one_line_at_once(bucket, monkeypatch, capsys, who):
    match who:
        case "a stranger":
            monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
        case "a wrong secret":
            monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        case _:
            monkeypatch.delenv("AWS_ACCESS_KEY_ID")
            monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    s3fs.S3FileSystem.clear_instance_cache()
    pauses = []
    with pytest.raises(ConfigError, match=r"^s3://pets/train.shards.json: .*check .*your (rights|keys)"):
        FsspecStore("s3://pets", patience(pauses)).read("train.shards.json")
    assert not pauses
    assert main(["data", "inspect", "webdataset:s3://pets"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_server_that_is_not_there_is_asked_again(bucket, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    s3fs.S3FileSystem.clear_instance_cache()
    pauses = []
    with pytest.raises(ConnectionError, match=r"train.shards.json: no answer in 4 tries"):
        FsspecStore("s3://pets", patience(pauses)).read("train.shards.json")
    assert len(pauses) == 3

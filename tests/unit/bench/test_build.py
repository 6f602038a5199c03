"""The native protocol compiles with the generators that users have, not only with ours."""

from kvnode.proto.kv.v1 import kv_pb2


def test_no_field_of_kv_proto_is_proto3_optional() -> None:
    """Debian's protoc-gen-go, which the load generator is built with, refuses a file that holds one."""
    # a proto3 `optional` shows as a oneof of one field whose name begins with an underscore
    found = [
        f"{message.name}.{oneof.name}"
        for message in kv_pb2.DESCRIPTOR.message_types_by_name.values()
        for oneof in message.oneofs
        if oneof.name.startswith("_")
    ]
    assert not found

"""What agents ask of backups, which they keep on their volumes."""

import trio

from cluster.errors import Refused, error_text
from cluster.messages import BACKUP_PART_MAX, BackupInfo, BackupPart, GetBackup, ReadBackup
from manager.memory.sessions import Session
from manager.rules.limits import check_count, check_number
from manager.term import Term


async def get_backup(term: Term, _session: Session, _request: GetBackup) -> BackupInfo:
    """The newest one that this server has made, if volumes are to have it."""
    if not (term.config.backup.every_s and term.config.backup.to_volumes):
        return BackupInfo()
    try:
        found = await trio.to_thread.run_sync(term.backups.newest)
    except OSError as error:
        raise Refused(f"a backup cannot be read: {error_text(error)}", error.errno) from error
    return BackupInfo() if found is None else BackupInfo(*found)


async def read_backup(term: Term, _session: Session, request: ReadBackup) -> BackupPart:
    """A part of one of them."""
    check_number(request.offset, "offset")
    check_number(request.length, "length")
    check_count(request.length, BACKUP_PART_MAX, "bytes")
    try:
        return BackupPart(await trio.to_thread.run_sync(term.backups.read, request.name, request.offset, request.length))
    except OSError as error:
        raise Refused(f"the backup {request.name} cannot be read: {error_text(error)}", error.errno) from error

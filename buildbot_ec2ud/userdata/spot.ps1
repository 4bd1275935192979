# A part of instance.ps1, for an instance that EC2 may take back.

# EC2 takes this machine back: end the worker in time.
function Stop-Worker($at) {
    Write-Line "ec2ud: spot-interruption at=$at"
    # EC2 gives two minutes. The last 15 s are for the master to hear of it.
    $left = 105
    try { $left = ([DateTimeOffset]$at - [DateTimeOffset]::UtcNow).TotalSeconds - 15 } catch {}
    # The worker tells the master, which gives it nothing more to do then, and ends it after its build.
    try {
        $worker = [IO.File]::ReadAllText("$dir\worker").Trim()
        [IO.File]::WriteAllText("$worker\shutdown.stamp", '')
    } catch {}
    Start-Sleep ([int][Math]::Max(0, [Math]::Min(105, $left)))
    # A worker that ends closes its connection: the master need not find out by itself.
    try {
        $ids = Get-Connection | Select-Object -Unique -ExpandProperty OwningProcess
        $ids | ForEach-Object { Stop-Process -Force -Id $_ }
    } catch {}
    Start-Sleep 2
    Stop-Machine 'spot-interruption'
}

function Test-Spot {
    $notice = Get-Metadata 'meta-data/spot/instance-action'
    # Whether it comes as a text or as what the text says, is the version's.
    if ($notice -is [string]) { try { $notice = ConvertFrom-Json $notice } catch { $notice = $null } }
    if ($notice.action) { Stop-Worker $notice.time }
    if ($script:advised) { return }
    $script:advised = Get-Metadata 'meta-data/events/recommendations/rebalance'
    if ($script:advised) { Write-Line 'ec2ud: rebalance-recommendation' }
}
